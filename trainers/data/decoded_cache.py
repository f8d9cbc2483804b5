"""Decoded data to and from the cache: by what they were asked for with, once a machine."""

import os
import warnings
from typing import Any

import torch

from layers.errors import OvertoneWarning, UsageError
from trainers.data.dataset import Data, Split
from trainers.data.manifest import Manifest
from trainers.data.spec import DataSpec
from trainers.data.stream import StreamedImages
from trainers.runtime.cache import cache_key, read_cached, write_cached

__all__ = ["data_key", "save_decoded", "load_decoded"]

_SPLITS = ("train", "val", "test")
_CARD = ("classes", "mean", "std", "augment", "warnings", "fingerprint")


def data_key(spec: DataSpec, files: Manifest) -> str:
    """The cache's key: where a set's folder is, its files, and all that decides what a split holds.

    A published set has no folder of its own: it is the same wherever it lies, or its checksums would have refused it.
    """
    asked = (spec.seed, spec.train_limit, spec.val_from, spec.image_size, spec.stream)
    return cache_key(spec.kind, os.path.realpath(spec.folder) if spec.folder else "", files, asked)


def load_decoded(key: str, train: Split | None = None) -> Data | None:
    """The data that were kept, mapped, with the fingerprint they had; None where there are none that can be used.

    A streamed training split is not kept, so it is given.
    """
    found = read_cached(key)
    try:
        return None if found is None else _data(*found, train)
    except (KeyError, TypeError, UsageError):
        return None


def save_decoded(name: str, key: str, data: Data) -> Data:
    """The data as they can be used from now on: mapped from the cache, or, with a warning, as they were given."""
    tensors: dict[str, torch.Tensor] = {}
    streamed = None
    for split in _SPLITS:
        found: Split = getattr(data, split)
        if isinstance(found.images, StreamedImages):
            streamed = found
        else:
            tensors |= {f"{split}.images": found.images, f"{split}.labels": found.labels}
    try:
        write_cached(key, tensors, {field: getattr(data, field) for field in _CARD})
    except OSError as error:
        warnings.warn(
            f"the decoded images of {name!r} cannot be kept ({error}) and will be decoded again; "
            f"OVERTONE_CACHE may name a folder that can hold them.",
            OvertoneWarning,
            stacklevel=4,
        )
    return load_decoded(key, streamed) or data


def _data(tensors: dict[str, torch.Tensor], card: dict[str, Any], train: Split | None) -> Data:
    def split(name: str) -> Split:
        return Split(images=tensors[f"{name}.images"], labels=tensors[f"{name}.labels"])

    data = Data(
        train=train if train is not None else split("train"),
        val=split("val"),
        test=split("test"),
        classes=card["classes"],
        mean=tuple(card["mean"]),
        std=tuple(card["std"]),
        augment=card["augment"],
        warnings=tuple(card["warnings"]),
    )
    vars(data)["fingerprint"] = card["fingerprint"]
    return data
