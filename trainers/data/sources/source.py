"""A set of images as every format gives it: labels known at once, images read by row."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from layers.errors import OvertoneError
from trainers.data.decode import AdvanceFn
from trainers.data.manifest import Manifest
from trainers.data.stream import StreamedImages

__all__ = ["Source", "check_labels"]

_PHOTO_MEAN = (0.485, 0.456, 0.406)  # ImageNet's
_PHOTO_STD = (0.229, 0.224, 0.225)
_NAMED = 6


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A set of images in its parts, as its publisher divided it: 'train', mostly 'test', sometimes 'validation'."""

    labels: dict[str, torch.Tensor]
    """By part, int64 (n,)."""
    classes: int
    image_bytes: int
    """Size of a decoded image, C x H x W."""
    read: Callable[[str, torch.Tensor, AdvanceFn], tuple[torch.Tensor, dict[int, str]]]
    """From a part and rows (k,) of it, in any order, to uint8 images (k, C, H, W) and a clause for each unusable one
    ('FILE is empty') by its index among the k. The callback hears of images that were encoded."""
    stream: Callable[[torch.Tensor, Manifest], StreamedImages] | None = None
    """From rows (n,) of the training part, and the set's files, to images that stay encoded until they are read; None
    for a set that is in memory anyway."""
    holdout: float = 0.1
    """Share of the training images that validation takes."""
    mean: tuple[float, ...] = _PHOTO_MEAN
    std: tuple[float, ...] = _PHOTO_STD
    augment: str = "crop-flip"
    warnings: tuple[str, ...] = ()
    """A sentence for each thing that was passed over, or is not as usual."""


def check_labels(name: str, source: Source) -> str:
    """Raise OvertoneError if the labels of the set of this name do not tell two or more classes apart.

    Returns a sentence about classes of which there is no training image, '' if there are none.
    """
    highest = max(source.classes, 2) - 1
    for part, labels in source.labels.items():
        wrong = labels[(labels < 0) | (labels > highest)]
        if len(wrong):
            raise OvertoneError(
                f"{len(wrong)} {part} labels of {name!r} are out of range (one is {int(wrong[0])}); "
                f"they must be 0 to {highest}"
            )
    if source.classes < 2:
        raise OvertoneError(f"dataset {name!r} has {source.classes} classes; a classifier needs 2 or more")
    absent = (source.labels["train"].bincount(minlength=source.classes) == 0).nonzero().squeeze(1).tolist()
    if not absent:
        return ""
    listed = ", ".join(map(str, absent[:_NAMED])) + (", ..." if len(absent) > _NAMED else "")
    return f"no training image of {name!r} has the label {listed}, though labels are 0 to {highest}"
