"""Decoded data to and from the cache, once per machine, keyed by everything that decides what they are."""

import os
import warnings
from typing import Any

import torch

from layers.errors import OvertoneWarning, UsageError, first_line
from trainers.data.dataset import Data, Split
from trainers.data.manifest import Manifest
from trainers.data.spec import DataSpec
from trainers.data.stream import StreamedImages
from trainers.runtime.cache import cache_key, read_cached, write_cached

__all__ = ["data_key", "load_decoded", "save_decoded"]

_SPLITS = ("train", "val", "test")
_CARD = ("classes", "mean", "std", "augment", "warnings", "fingerprint")


def data_key(spec: DataSpec, manifest: Manifest) -> str:
    """Return the cache key: the set's folder, its files, and the settings that decide what a split holds.

    Mean, deviation and augmentation are put in place after loading. A published set has no folder of its own: it is the
    same in every place, or its checksums would have refused it.
    """
    size = (spec.image_size, spec.resize_size, spec.interpolation)
    settings = (spec.seed, spec.train_limit, spec.val_from, size, spec.channels, spec.stream)
    return cache_key(spec.kind, os.path.realpath(spec.folder) if spec.folder else "", manifest, settings)


def load_decoded(key: str, train: Split | None = None) -> Data | None:
    """Return the cached data, mapped, with their fingerprint; None if there are none that can be used.

    A streamed training split is not cached, so the caller gives it as `train`.
    """
    entry = read_cached(key)
    try:
        return None if entry is None else _to_data(*entry, train)
    except (KeyError, TypeError, UsageError):
        return None


def save_decoded(name: str, key: str, data: Data) -> Data:
    """Cache the data and return them mapped; with a warning, return them as they are if they cannot be cached."""
    tensors: dict[str, torch.Tensor] = {}
    streamed = None
    for split_name in _SPLITS:
        split: Split = getattr(data, split_name)
        if isinstance(split.images, StreamedImages):
            streamed = split
        else:
            tensors |= {f"{split_name}.images": split.images, f"{split_name}.labels": split.labels}
    try:
        write_cached(key, tensors, {field: getattr(data, field) for field in _CARD})
    except OSError as error:
        warnings.warn(
            f"cannot cache the decoded images of {name!r}, which will be decoded again: {first_line(error)}; "
            f"OVERTONE_CACHE may name a folder with room for them",
            OvertoneWarning,
            stacklevel=4,
        )
    return load_decoded(key, streamed) or data


def _to_data(tensors: dict[str, torch.Tensor], card: dict[str, Any], train: Split | None) -> Data:
    def split(name: str) -> Split:
        return Split(images=tensors[f"{name}.images"], labels=tensors[f"{name}.labels"])

    return Data(
        train=train if train is not None else split("train"),
        val=split("val"),
        test=split("test"),
        classes=card["classes"],
        mean=tuple(card["mean"]),
        std=tuple(card["std"]),
        augment=card["augment"],
        warnings=tuple(card["warnings"]),
        cached_fingerprint=card["fingerprint"],
    )
