"""Labelled images as uint8 tensors, split by seed into training, validation and test images.

The validation split steers a search; the test split is only read to report. Which images they hold depends on the set,
`DataSpec.seed` and `DataSpec.validation_from` alone, whatever `train_limit` is.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from layers.errors import OvertoneError, UsageError
from trainers.dataspec import DataSpec
from trainers.imagefolder import imagefolder_source
from trainers.memory import check_memory
from trainers.parquet import parquet_source
from trainers.sources import Source, cifar10_source, digits_source
from trainers.splits import balanced_order

__all__ = ["Data", "DataSpec", "Split", "load_data"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Images and what they show."""

    images: torch.Tensor
    """uint8 (n, C, H, W)."""
    labels: torch.Tensor
    """int64 (n,)."""

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4 or self.labels.shape != self.images.shape[:1]:
            raise UsageError(
                f"images (={self.images.dtype}, {tuple(self.images.shape)}) must be uint8 (n, C, H, W) "
                f"and labels (={tuple(self.labels.shape)}) must be (n,)."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        """The same split on a device; nothing is copied where it is there already."""
        return Split(images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """The three splits and what a network must know of them; it pickles as plain tensors."""

    train: Split
    val: Split
    test: Split
    classes: int
    mean: tuple[float, ...]
    """One a channel, of images scaled to [0, 1]."""
    std: tuple[float, ...]
    augment: str
    """'none', 'shift' (crops alone: a mirrored digit is no digit) or 'crop-flip'."""

    @property
    def channels(self) -> int:
        """Planes of an image: 1 for grey, 3 for colour."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        """Height of an image in pixels."""
        return self.train.images.shape[2]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over what a trial learns from and is measured on: the splits, and how they are normalised."""
        digest = hashlib.sha256(repr((self.classes, self.mean, self.std, self.augment)).encode())
        for split in (self.train, self.val, self.test):
            for tensor in (split.images, split.labels):
                digest.update(repr(tuple(tensor.shape)).encode())
                digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()


def load_data(spec: DataSpec) -> Data:
    """Read and split a set of images; only the images that a split keeps are decoded.

    Raises UsageError for a folder that is not there, OvertoneError for images or labels that cannot be used.
    """
    generator = torch.Generator().manual_seed(spec.seed)
    source = _open(spec, generator)
    rows = _rows(spec, source, generator)
    check_memory(spec.name, sum(len(indices) for _, indices in rows.values()), source.image_bytes)
    splits = {name: _read(source, part, indices) for name, (part, indices) in rows.items()}
    data = _without_colour(
        Data(**splits, classes=source.classes, mean=source.mean, std=source.std, augment=source.augment)
    )
    _ = data.fingerprint  # computed here, once, it travels with the data
    return data


def _open(spec: DataSpec, generator: torch.Generator) -> Source:
    if spec.kind == "digits":
        source = digits_source(generator)
    elif spec.kind == "cifar10":
        source = cifar10_source(spec.data_dir)
    elif spec.kind == "parquet":
        source = parquet_source(spec.folder)
    else:
        source = imagefolder_source(spec.folder, spec.image_size or 224)
    _check_labels(spec.name, source)
    return source


def _check_labels(name: str, source: Source) -> None:
    if source.classes < 2:
        raise OvertoneError(f"dataset {name!r} has {source.classes} classes; a classifier needs 2 or more.")
    for part, labels in source.labels.items():
        wrong = labels[(labels < 0) | (labels >= source.classes)]
        if len(wrong):
            raise OvertoneError(
                f"{len(wrong)} {part} labels of {name!r} are out of range (one is {int(wrong[0])}); "
                f"allowed are 0 to {source.classes - 1}."
            )


def _rows(spec: DataSpec, source: Source, generator: torch.Generator) -> dict[str, tuple[str, torch.Tensor]]:
    """For each split the source's part it comes from, and the rows in it."""
    train, test = (balanced_order(source.labels[part], generator) for part in ("train", "test"))
    if spec.validation_from == "train":
        held = round(source.holdout * len(train))
        part, val, train = "train", train[:held], train[held:]
    else:
        held = len(test) // 2
        part, val, test = "test", test[:held], test[held:]
    rows = {"train": ("train", train[: spec.train_limit]), "val": (part, val), "test": ("test", test)}
    for name, (_, indices) in rows.items():
        least = 2 if name == "train" else 1  # batch norm needs two images
        if len(indices) < least:
            raise OvertoneError(
                f"the {name} split of {spec.name!r} has {len(indices)} images; it must have at least {least}."
            )
    return rows


def _read(source: Source, part: str, rows: torch.Tensor) -> Split:
    return Split(images=source.read(part, rows), labels=source.labels[part][rows])


def _without_colour(data: Data) -> Data:
    """One plane instead of three where every image is grey; such sets are often letters, so they are never mirrored."""
    splits = (data.train, data.val, data.test)
    if data.channels != 3 or not all(_is_grey(split.images) for split in splits):
        return data
    train, val, test = (Split(images=s.images[:, :1].contiguous(), labels=s.labels) for s in splits)
    mean, std = ((sum(planes) / 3,) for planes in (data.mean, data.std))
    return replace(data, train=train, val=val, test=test, mean=mean, std=std, augment="shift")


def _is_grey(images: torch.Tensor) -> bool:
    first, rest = images[:, :1], images[:, 1:]
    return torch.equal(first[0].expand_as(rest[0]), rest[0]) and torch.equal(first.expand_as(rest), rest)
