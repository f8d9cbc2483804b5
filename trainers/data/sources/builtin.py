"""The two sets that are known by name: scikit-learn's digits and torchvision's CIFAR-10."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from layers.errors import OvertoneError, first_line
from trainers.data.sources.source import Source
from trainers.data.splitting import balanced_order

__all__ = ["cifar10_source", "digits_source"]

_DIGITS_MEAN = (0.3053,)  # over all 1,797 images as read here
_DIGITS_STD = (0.3759,)


def digits_source(generator: torch.Generator) -> Source:
    """Return scikit-learn's 1,797 gray 8x8 digits, 0..16 scaled to 0..255; a class-balanced fifth is the test part."""
    from sklearn.datasets import load_digits  # here, because importing it takes a second

    pixels, classes = load_digits(return_X_y=True)
    images = torch.from_numpy(np.rint(pixels * (255 / 16)).astype(np.uint8)).view(-1, 1, 8, 8)
    labels = torch.from_numpy(classes).long()
    order = balanced_order(labels, generator)
    held = round(0.2 * len(order))
    parts = {"train": order[held:], "test": order[:held]}
    return Source(
        labels={part: labels[rows] for part, rows in parts.items()},
        classes=10,
        image_bytes=64,
        read=lambda part, rows, *_: (images[parts[part][rows]], {}),
        holdout=0.25,
        mean=_DIGITS_MEAN,
        std=_DIGITS_STD,
        augment="shift",
    )


def cifar10_source(folder: str) -> Source:
    """Read CIFAR-10 by torchvision, which downloads it into the folder if it is missing; a failure leaves no folder."""
    from torchvision.datasets import CIFAR10

    try:
        with _removed_on_failure(folder):
            parts = {"train": CIFAR10(folder, train=True, download=True), "test": CIFAR10(folder, train=False)}
    except (OSError, RuntimeError) as error:
        raise OvertoneError(
            f"CIFAR-10 is not in {folder!r} and cannot be downloaded ({first_line(error)}); --data-dir says where it is"
        ) from error
    images = {part: torch.from_numpy(dataset.data).permute(0, 3, 1, 2) for part, dataset in parts.items()}
    return Source(
        labels={part: torch.tensor(dataset.targets, dtype=torch.int64) for part, dataset in parts.items()},
        classes=10,
        image_bytes=3 * 32 * 32,
        read=lambda part, rows, *_: (images[part][rows].contiguous(), {}),
    )


@contextmanager
def _removed_on_failure(folder: str) -> Iterator[None]:
    """Remove the folder if the block fails, unless it was there before."""
    new = not os.path.exists(folder)
    try:
        yield
    except BaseException:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise
