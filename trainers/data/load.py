"""Labeled images as uint8 tensors, split by seed into training, validation and test images.

The validation split steers a search; the test split is only read to report. Which images they hold depends on the set,
`DataSpec.seed` and `DataSpec.val_from`, whatever `train_limit` is. Every set except the digits is decoded once per
machine (`trainers.runtime.cache`).
"""

import hashlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import torch

from layers.errors import OvertoneError, OvertoneWarning, UsageError
from trainers.data.channels import with_channels
from trainers.data.dataset import Data, Split
from trainers.data.decode import AdvanceFn
from trainers.data.decoded_cache import data_key, load_decoded, save_decoded
from trainers.data.manifest import Manifest, read_manifest
from trainers.data.sources.builtin import cifar10_source, digits_source
from trainers.data.sources.imagefolder import imagefolder_source
from trainers.data.sources.parquet import parquet_source
from trainers.data.sources.source import Source, check_labels
from trainers.data.spec import DataSpec
from trainers.data.splitting import split_rows
from trainers.data.stream import StreamedImages
from trainers.data.unreadable import check_unreadable
from trainers.runtime.cache import machine_lock
from trainers.runtime.memory import available_bytes

__all__ = ["ProgressFn", "load_data"]

ProgressFn = Callable[[int, int], None]
"""A callback that is given the number of images decoded so far and the number in all."""


def load_data(spec: DataSpec, progress: ProgressFn = lambda done, total: None) -> Data:
    """Read and split a set of images; decode only the images that a split keeps, once per machine.

    `progress` is called while images are decoded. Warns (OvertoneWarning) of what is passed over, such as unusable
    images, at most 1 % of a split, and of decoded images that cannot be cached. Raises UsageError for a folder that
    does not exist, for settings that it does not allow, and for images that the caller holds (`trainers.data.objects`),
    OvertoneError for images or labels that cannot be used.
    """
    if spec.is_object:
        raise UsageError(f"the images {spec.name!r} were given as objects: give them again in Python, as data")
    data = _decode(spec, _open(spec)) if spec.kind == "digits" else _load_or_decode(spec, progress)
    for sentence in data.warnings:
        warnings.warn(sentence, OvertoneWarning, stacklevel=2)
    return _as_given(spec, data)


def _as_given(spec: DataSpec, data: Data) -> Data:
    """Return the data with the normalization and augmentation of the spec in place of the set's own."""
    mean, std = spec.normalization(data.channels) or (data.mean, data.std)
    augment = spec.augment or data.augment
    if (mean, std, augment) == (data.mean, data.std, data.augment):
        return data
    text = f"{data.fingerprint} {mean} {std} {augment}"  # the pixels are hashed once, in the first of them
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return replace(data, mean=mean, std=std, augment=augment, cached_fingerprint=sha256)


def _load_or_decode(spec: DataSpec, progress: ProgressFn) -> Data:
    """Return the cached data, or decode and cache them; of several processes that want them one decodes."""
    manifest = read_manifest(spec.kind, spec.folder) if spec.folder else []
    key, opened = data_key(spec, manifest), cache(partial(_open, spec))
    if not spec.stream and (data := load_decoded(key)):
        return data
    with machine_lock(spec.kind, os.path.realpath(spec.folder or spec.data_dir)):
        train = opened().streamed(manifest, spec.channels or 3) if spec.stream else None
        return load_decoded(key, train) or save_decoded(spec.name, key, _decode(spec, opened(), train, progress))


@dataclass(frozen=True)
class _SplitSource:
    """A source, and for each split the part of it and the rows there."""

    source: Source
    rows: dict[str, tuple[str, torch.Tensor]]
    warnings: tuple[str, ...]
    """Sentences about the set as a whole."""

    def streamed(self, manifest: Manifest, channels: int) -> Split:
        """Return the training images, to be read later."""
        part, rows = self.rows["train"]
        assert self.source.stream is not None  # DataSpec allows stream only for sets in a folder
        split = Split(images=self.source.stream(rows, manifest), labels=self.source.labels[part][rows])
        return with_channels(split, channels)


def _open(spec: DataSpec) -> _SplitSource:
    generator = torch.Generator().manual_seed(spec.seed)
    if spec.kind == "digits":
        source = digits_source(generator)
    elif spec.kind == "cifar10":
        source = cifar10_source(os.path.expanduser(spec.data_dir))
    elif spec.kind == "parquet":
        source = parquet_source(spec.folder, spec.image_size, spec.resize_size, spec.interpolation)
    else:
        source = imagefolder_source(spec.folder, spec.image_size or 224, spec.resize_size, spec.interpolation)
    warnings = source.warnings
    if "validation" in source.labels and spec.val_from != "validation":
        warnings += (f"the validation images of {spec.name!r} are not used; --val-from validation takes them",)
        source = replace(source, labels={part: source.labels[part] for part in ("train", "test")})
    absent = check_labels(spec.name, source)
    rows = split_rows(spec, source.labels, source.holdout, generator)
    return _SplitSource(source, rows, (*warnings, absent) if absent else warnings)


def _decode(
    spec: DataSpec,
    opened: _SplitSource,
    train: Split | None = None,
    progress: ProgressFn = lambda done, total: None,
) -> Data:
    """Decode all splits; a given training split stays as it is."""
    source = opened.source
    rows = {name: part_rows for name, part_rows in opened.rows.items() if train is None or name != "train"}
    total = sum(len(indices) for _, indices in rows.values())
    _check_memory(spec.name, total, source.image_bytes)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    read = {name: _read_split(spec.name, source, part, indices, advance) for name, (part, indices) in rows.items()}
    splits = {name: split for name, (split, _) in read.items()} | ({} if train is None else {"train": train})
    mean, std, augment = source.mean, source.std, source.augment
    gray = all(_is_gray(split.images) for split in splits.values())
    channels = spec.channels or (1 if gray else splits["val"].images.shape[1])
    splits = {name: with_channels(split, channels) for name, split in splits.items()}
    if channels == 1:
        mean, std = ((sum(planes) / len(planes),) for planes in (mean, std))
    elif len(mean) == 1:
        mean, std = mean * channels, std * channels
    if gray:
        augment = "shift"  # sets of gray images are often letters, so they are never mirrored
    return Data(
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        classes=source.classes,
        mean=mean,
        std=std,
        augment=augment,
        warnings=(*opened.warnings, *(sentence for _, sentence in read.values() if sentence)),
    )


def _check_memory(name: str, images: int, image_bytes: int) -> None:
    """Raise OvertoneError if the decoded images (`image_bytes` each) would not fit in memory."""
    required, available = images * image_bytes, available_bytes()
    if required > available:
        raise OvertoneError(
            f"the {images:,} decoded images of {name!r} take {required / 1e9:.1f} GB, but {available / 1e9:.1f} GB of "
            f"memory are available; --stream decodes training images when they are needed, --train-limit keeps fewer"
        )


def _read_split(name: str, source: Source, part: str, rows: torch.Tensor, advance: AdvanceFn) -> tuple[Split, str]:
    """Return the split of the usable images, and the warning about the others."""
    images, errors = source.read(part, rows, advance)
    sentence = check_unreadable(name, list(errors.values()), len(rows))
    if errors:
        usable = [index for index in range(len(rows)) if index not in errors]
        images, rows = _compact(images, usable), rows[usable]
    return Split(images=images, labels=source.labels[part][rows]), sentence


def _compact(images: torch.Tensor, indices: list[int]) -> torch.Tensor:
    """Return images[indices] for ascending indices, in the images' own memory: a copy may not fit."""
    for target, index in enumerate(indices):
        if target != index:
            images[target] = images[index]
    return images[: len(indices)]


def _is_gray(images: torch.Tensor | StreamedImages) -> bool:
    """Return whether three planes are equal everywhere; False for images that are not decoded yet."""
    if isinstance(images, StreamedImages) or images.shape[1] != 3:
        return False
    first, rest = images[:, :1], images[:, 1:]
    return torch.equal(first[0].expand_as(rest[0]), rest[0]) and torch.equal(first.expand_as(rest), rest)
