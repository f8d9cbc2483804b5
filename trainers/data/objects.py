"""Images that the caller holds: tensors or map-style datasets, in one part or already divided.

Nothing of them is kept: whoever goes on with a study gives them again, and their fingerprint says whether they are the
same. A dataset is read once, in order, so that random transforms of its own would be frozen: leave augmentation to the
training.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from layers.errors import OvertoneError, UsageError, first_line, translate_errors
from trainers.data.dataset import Data, Split
from trainers.data.spec import DataSpec
from trainers.data.splitting import balanced_order, check_sizes, split_rows

__all__ = ["ImageObjects", "MapDataset", "Parts", "describe_objects", "object_data", "read_parts"]

_FORMS = "(images, labels), a dataset of such pairs, or a mapping of train, val and test to them"
_MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr")
"""Modes of PIL's images of 8 bits a channel; others would lose values on the way."""

_HELD_FOR_TEST, _HELD_FOR_VAL = 0.2, 0.25
"""Shares that are held out of undivided images: of all, then of the rest, which makes 60/20/20."""


class MapDataset(Protocol):
    """What `torch.utils.data.Dataset` means by map-style: pairs (image, label) by their number."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitem__(self, index: int) -> Any:
        """Return image and label."""
        ...


Part = tuple[Any, Any] | MapDataset
ImageObjects = Part | Mapping[str, Part]
Parts = Mapping[str, tuple[Tensor, Tensor]]
"""Images (n, C, H, W), uint8 or float32, and labels (n,), int64, by part: `all`, or `train` beside `val` or `test`."""


def describe_objects(data: ImageObjects) -> str:
    """Return the name of such data in a `DataSpec`, such as `object:TensorDataset`; raise `UsageError` for others."""
    parts = _divided(data)
    kinds = dict.fromkeys("tensors" if _is_pair(part) else type(part).__name__ for part in parts.values())
    return f"object:{'+'.join(kinds)}"


def read_parts(data: ImageObjects, progress: Callable[[int, int], None] = lambda done, total: None) -> Parts:
    """Return all images and labels as tensors.

    Images of a dataset may be tensors (C, H, W) or PIL's; `progress` is called while they are read. Raises `UsageError`
    for images that have not one shape and type, are neither uint8 nor finite floats, or have no label each.
    """
    parts = {name: _read(name, part, progress) for name, part in _divided(data).items()}
    first = next(iter(parts.values()))[0]
    for name, (images, _) in parts.items():
        if (images.shape[1:], images.dtype) != (first.shape[1:], first.dtype):
            raise UsageError(
                f"images of {name} (={_shown(images)}) must be of the shape and type of the others, {_shown(first)}"
            )
    return parts


def object_data(spec: DataSpec, parts: Parts, classes: int | None = None) -> Data:
    """Split the parts as the spec says; without `classes` the highest label is that of the last class.

    Undivided images are split 60/20/20, every class in proportion. `val` without `test` is divided in two halves, one
    of which becomes the test split. Raises `UsageError` for labels out of range, and for uint8 images whose
    normalization is not given.
    """
    generator = torch.Generator().manual_seed(spec.seed)
    first = next(iter(parts.values()))[0]
    channels = first.shape[1]
    mean, std = _normalization(spec, first)
    highest = max(int(labels.max()) for _, labels in parts.values())
    if classes is not None and highest >= classes:
        raise UsageError(f"labels (=0 to {highest}) must be below {classes}, the number of the network's outputs")
    splits = {
        name: Split(images=parts[part][0][rows], labels=parts[part][1][rows])
        for name, (part, rows) in _rows(spec, parts, generator).items()
    }
    return Data(
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        classes=max(2, highest + 1) if classes is None else classes,
        mean=mean,
        std=std,
        augment=spec.augment or ("shift" if channels == 1 else "crop-flip"),
    )


def _divided(data: ImageObjects) -> dict[str, Part]:
    """Return the parts by name, `all` for undivided data."""
    if not isinstance(data, Mapping):
        parts: dict[str, Part] = {"all": data}
    else:
        parts = dict(data)
        allowed = ({"train", "val"}, {"train", "test"}, {"train", "val", "test"})
        if set(parts) not in allowed:
            raise UsageError(f"data (=parts {', '.join(map(str, parts)) or 'none'}) must have train, and val or test")
    for name, part in parts.items():
        if not _is_pair(part) and not (hasattr(part, "__len__") and hasattr(part, "__getitem__")):
            raise UsageError(f"data (={name} of {type(part).__name__}) must be {_FORMS}")
    return parts


def _is_pair(part: object) -> TypeGuard[tuple[Any, Any]]:
    return isinstance(part, tuple | list) and len(part) == 2 and isinstance(part[0], Tensor | np.ndarray)


def _read(name: str, part: Part, progress: Callable[[int, int], None]) -> tuple[Tensor, Tensor]:
    if _is_pair(part):
        with translate_errors(f"cannot read the tensors of {name}", RuntimeError, TypeError, ValueError, to=UsageError):
            images, labels = map(_tensor, part)
    else:
        images, labels = _read_dataset(name, part, progress)
    if images.is_floating_point():
        images = images.float()
    if images.dim() != 4 or images.dtype not in (torch.uint8, torch.float32):
        raise UsageError(f"images of {name} (={_shown(images)}) must be uint8 or float (n, C, H, W)")
    if not images.numel():
        raise UsageError(f"images of {name} (={_shown(images)}) must be one or more, and not empty")
    if images.is_floating_point() and not bool(images.isfinite().all()):
        raise UsageError(f"images of {name} must be finite: some values are infinite or not numbers")
    whole = not labels.is_floating_point() and not labels.is_complex()
    if tuple(labels.shape) != (len(images),) or not whole:
        raise UsageError(f"labels of {name} (={_shown(labels)}) must be whole numbers (n,), one of {len(images)} each")
    labels = labels.long()
    if int(labels.min()) < 0:
        raise UsageError(f"labels of {name} must be 0 or more, the least is {int(labels.min())}")
    return images, labels


def _tensor(values: Any) -> Tensor:
    """Return values on the CPU, apart from any gradient; numpy arrays that torch cannot share are copied."""
    if isinstance(values, np.ndarray):
        values = np.require(values, values.dtype.newbyteorder("="), ["C_CONTIGUOUS", "WRITEABLE"])
    return torch.as_tensor(values).detach().cpu()


def _read_dataset(name: str, dataset: MapDataset, progress: Callable[[int, int], None]) -> tuple[Tensor, Tensor]:
    """Read a dataset into one tensor, image by image: two copies may not fit."""
    if not len(dataset):
        raise UsageError(f"data (={name}) must hold one image or more")
    images: Tensor | None = None
    labels = torch.empty(len(dataset), dtype=torch.int64)
    for index in range(len(dataset)):
        image, label = _item(name, dataset, index)
        if images is None:
            images = torch.empty((len(dataset), *image.shape), dtype=image.dtype)
        if (image.shape, image.dtype) != (images.shape[1:], images.dtype):
            raise UsageError(
                f"image {index} of {name} (={_shown(image)}) must be of the shape and type of the first, "
                f"{_shown(images[0])}"
            )
        images[index], labels[index] = image, label
        progress(index + 1, len(dataset))
    assert images is not None
    return images, labels


def _item(name: str, dataset: MapDataset, index: int) -> tuple[Tensor, int]:
    try:
        image, label = dataset[index]
        if isinstance(image, Image.Image):
            if image.mode not in _MODES:
                raise UsageError(f"item {index} of {name} (=mode {image.mode!r}) must have 8 bits a channel")
            pixels = np.array(image if image.mode in ("L", "RGB") else image.convert("RGB"))
            image = torch.from_numpy(pixels).view(*pixels.shape[:2], -1).permute(2, 0, 1)
        return _tensor(image), operator.index(label)  # int would cut a float
    except OvertoneError:
        raise
    except Exception as error:  # of the user's own code
        raise UsageError(
            f"item {index} of {name} must be an image and its label: {type(error).__name__}: {first_line(error)}"
        ) from error


def _normalization(spec: DataSpec, images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each channel."""
    channels = images.shape[1]
    given = spec.normalization(channels)
    if given is None and images.dtype == torch.uint8:
        raise UsageError(
            "mean and std must be given for uint8 images: those that the weights were trained with, such as "
            "mean=0, std=1 for images scaled to [0, 1]"
        )
    return given or ((0.0,) * channels, (1.0,) * channels)


def _rows(spec: DataSpec, parts: Parts, generator: torch.Generator) -> dict[str, tuple[str, Tensor]]:
    """Return for each split the part that it comes from, and the rows there."""
    labels = {name: part[1] for name, part in parts.items()}
    if set(parts) == {"train", "val", "test"}:
        train = balanced_order(labels["train"], generator)[: spec.train_limit]
        whole = {name: (name, torch.arange(len(labels[name]))) for name in ("val", "test")}
        return check_sizes(spec.name, {"train": ("train", train), **whole})
    if "all" not in parts:
        spec = spec if "test" in parts else replace(spec, val_from="test")
        other = "test" if "test" in parts else "val"
        rows = split_rows(spec, {"train": labels["train"], "test": labels[other]}, 0.1, generator)
        return {name: (other if part == "test" else part, indices) for name, (part, indices) in rows.items()}
    order = balanced_order(labels["all"], generator)
    held = round(_HELD_FOR_TEST * len(order))
    halves = {"train": order[held:], "test": order[:held]}
    rows = split_rows(spec, {name: labels["all"][half] for name, half in halves.items()}, _HELD_FOR_VAL, generator)
    return {name: ("all", halves[part][indices]) for name, (part, indices) in rows.items()}


def _shown(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
