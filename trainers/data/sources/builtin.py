"""Where images come from: labels known at once, images read by row; and the two sets that need no folder of ours."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from layers.errors import OvertoneError
from trainers.data.decode import ProgressFn
from trainers.data.manifest import Manifest
from trainers.data.splitting import balanced_order
from trainers.data.stream import StreamedImages

__all__ = ["Source", "check_labels", "cifar10_source", "digits_source"]

_PHOTO_MEAN, _PHOTO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
_DIGITS_MEAN, _DIGITS_STD = (0.3053,), (0.3759,)  # over all 1,797 images as read here


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A set of images in two parts, 'train' and 'test', as its publisher divided it."""

    labels: dict[str, torch.Tensor]
    """By part, int64 (n,)."""
    classes: int
    image_bytes: int
    """Of one decoded image, C x H x W."""
    read: Callable[[str, torch.Tensor, ProgressFn], tuple[torch.Tensor, dict[int, str]]]
    """From a part and rows (k,) of it, in any order, to uint8 images (k, C, H, W) and, by their place among the k,
    what is wrong with those that cannot be used ('FILE is empty'). Images that were encoded are told of."""
    stream: Callable[[torch.Tensor, Manifest], StreamedImages] | None = None
    """From rows (n,) of the training part, and the files of the set, to images that stay encoded until they are read;
    None for a set that is in memory anyway."""
    holdout: float = 0.1
    """Share of the training images that validation takes."""
    mean: tuple[float, ...] = _PHOTO_MEAN
    std: tuple[float, ...] = _PHOTO_STD
    augment: str = "crop-flip"


def check_labels(name: str, source: Source) -> None:
    """Raise OvertoneError where the labels of the set of this name are no classes to tell apart."""
    highest = max(source.classes, 2) - 1
    for part, labels in source.labels.items():
        wrong = labels[(labels < 0) | (labels > highest)]
        if len(wrong):
            raise OvertoneError(
                f"{len(wrong)} {part} labels of {name!r} are out of range (one is {int(wrong[0])}); "
                f"allowed are 0 to {highest}."
            )
    if source.classes < 2:
        raise OvertoneError(f"dataset {name!r} has {source.classes} classes; a classifier needs 2 or more.")


def digits_source(generator: torch.Generator) -> Source:
    """scikit-learn's 1,797 gray 8x8 digits, 0..16 scaled to 0..255; a fifth, class-balanced, is the test part."""
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
    """CIFAR-10 by torchvision, which downloads it into the folder where it is not there; a failure leaves no folder."""
    from torchvision.datasets import CIFAR10

    try:
        with _gone_on_failure(folder):
            parts = {"train": CIFAR10(folder, train=True, download=True), "test": CIFAR10(folder, train=False)}
    except (OSError, RuntimeError) as error:
        raise OvertoneError(
            f"CIFAR-10 is not in {folder!r} and could not be downloaded ({_first_line(error)}); "
            f"--data-dir says where it is."
        ) from error
    images = {part: torch.from_numpy(found.data).permute(0, 3, 1, 2) for part, found in parts.items()}
    return Source(
        labels={part: torch.tensor(found.targets, dtype=torch.int64) for part, found in parts.items()},
        classes=10,
        image_bytes=3 * 32 * 32,
        read=lambda part, rows, *_: (images[part][rows].contiguous(), {}),
    )


@contextmanager
def _gone_on_failure(folder: str) -> Iterator[None]:
    """Let a folder that was not there before be there afterwards only if all went well."""
    new = not os.path.exists(folder)
    try:
        yield
    except BaseException:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
