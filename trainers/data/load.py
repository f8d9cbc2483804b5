"""Labelled images as uint8 tensors, split by seed into training, validation and test images.

The validation split steers a search; the test split is only read to report. Which images they hold depends on the set,
`DataSpec.seed` and `DataSpec.val_from` alone, whatever `train_limit` is. All sets but the digits are decoded
once a machine (`trainers.runtime.cache`).
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import torch

from layers.errors import OvertoneWarning
from trainers.data.dataset import Data, Split
from trainers.data.decode import ProgressFn
from trainers.data.decoded_cache import data_key, load_decoded, save_decoded
from trainers.data.manifest import Manifest, read_manifest
from trainers.data.memory import check_memory
from trainers.data.sources.builtin import Source, check_labels, cifar10_source, digits_source
from trainers.data.sources.imagefolder import imagefolder_source
from trainers.data.sources.parquet import parquet_source
from trainers.data.spec import DataSpec
from trainers.data.splitting import split_rows
from trainers.data.stream import StreamedImages
from trainers.data.unreadable import check_unreadable
from trainers.runtime.cache import machine_lock

__all__ = ["load_data"]


def load_data(spec: DataSpec, told: Callable[[int, int], None] = lambda done, total: None) -> Data:
    """Read and split a set of images; only the images that a split keeps are decoded, and once a machine.

    Meanwhile `told` hears how many of how many are decoded. Warns (OvertoneWarning) of images that are left out because
    they cannot be used, at most 1 % of a split, and where decoded images cannot be kept. Raises UsageError for a folder
    that is not there, OvertoneError for images or labels that cannot be used.
    """
    data = _decoded(spec, _open(spec)) if spec.kind == "digits" else _kept(spec, told)
    for sentence in data.warnings:
        warnings.warn(sentence, OvertoneWarning, stacklevel=2)
    return data


def _kept(spec: DataSpec, told: Callable[[int, int], None]) -> Data:
    """What was decoded before, else what is decoded now and kept, by one of those that ask at once."""
    files = read_manifest(spec.kind, spec.folder) if spec.folder else []
    key, opened = data_key(spec, files), cache(partial(_open, spec))
    if not spec.stream and (found := load_decoded(key)):
        return found
    with machine_lock(spec.kind, os.path.realpath(spec.folder or spec.data_dir)):
        train = opened().streamed(files) if spec.stream else None
        return load_decoded(key, train) or save_decoded(spec.name, key, _decoded(spec, opened(), train, told))


@dataclass(frozen=True)
class _Opened:
    """A source, and for each split the part of it and the rows there."""

    source: Source
    rows: dict[str, tuple[str, torch.Tensor]]

    def streamed(self, files: Manifest) -> Split:
        """The training images as they are read later."""
        part, rows = self.rows["train"]
        assert self.source.stream is not None  # DataSpec allows stream for sets in a folder alone
        return Split(images=self.source.stream(rows, files), labels=self.source.labels[part][rows])


def _open(spec: DataSpec) -> _Opened:
    generator = torch.Generator().manual_seed(spec.seed)
    if spec.kind == "digits":
        source = digits_source(generator)
    elif spec.kind == "cifar10":
        source = cifar10_source(os.path.expanduser(spec.data_dir))
    elif spec.kind == "parquet":
        source = parquet_source(spec.folder)
    else:
        source = imagefolder_source(spec.folder, spec.image_size or 224)
    check_labels(spec.name, source)
    return _Opened(source, split_rows(spec, source.labels, source.holdout, generator))


def _decoded(
    spec: DataSpec,
    opened: _Opened,
    train: Split | None = None,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> Data:
    """All splits decoded, but for a training split that is given."""
    source = opened.source
    rows = {name: place for name, place in opened.rows.items() if train is None or name != "train"}
    total = sum(len(indices) for _, indices in rows.values())
    check_memory(spec.name, total, source.image_bytes)
    done = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        told(done, total)

    read = {name: _read(spec.name, source, part, indices, more) for name, (part, indices) in rows.items()}
    splits = {name: split for name, (split, _) in read.items()}
    data = Data(
        train=train if train is not None else splits["train"],
        val=splits["val"],
        test=splits["test"],
        classes=source.classes,
        mean=source.mean,
        std=source.std,
        augment=source.augment,
        warnings=tuple(sentence for _, sentence in read.values() if sentence),
    )
    data = _without_color(data)
    _ = data.fingerprint  # computed here, once, it travels with the data
    return data


def _read(name: str, source: Source, part: str, rows: torch.Tensor, told: ProgressFn) -> tuple[Split, str]:
    """The split of those images that can be used, and what is said of the others."""
    images, faults = source.read(part, rows, told)
    sentence = check_unreadable(name, list(faults.values()), len(rows))
    if faults:
        places = [place for place in range(len(rows)) if place not in faults]
        images, rows = _closed_up(images, places), rows[places]
    return Split(images=images, labels=source.labels[part][rows]), sentence


def _closed_up(images: torch.Tensor, places: list[int]) -> torch.Tensor:
    """images[places] for ascending places, in the memory of the images: there may be none for a copy."""
    for place, former in enumerate(places):
        if place != former:
            images[place] = images[former]
    return images[: len(places)]


def _without_color(data: Data) -> Data:
    """One plane instead of three where every image is gray; such sets are often letters, so they are never mirrored."""
    splits = (data.train, data.val, data.test)
    if not all(_is_gray(split.images) for split in splits):
        return data
    train, val, test = map(_first_plane, splits)
    mean, std = ((sum(planes) / 3,) for planes in (data.mean, data.std))
    return replace(data, train=train, val=val, test=test, mean=mean, std=std, augment="shift")


def _is_gray(images: torch.Tensor | StreamedImages) -> bool:
    """Whether three planes are equal everywhere; not those of images that are yet to be decoded."""
    if isinstance(images, StreamedImages) or images.shape[1] != 3:
        return False
    first, rest = images[:, :1], images[:, 1:]
    return torch.equal(first[0].expand_as(rest[0]), rest[0]) and torch.equal(first.expand_as(rest), rest)


def _first_plane(split: Split) -> Split:
    assert isinstance(split.images, torch.Tensor)
    return Split(images=split.images[:, :1].contiguous(), labels=split.labels)
