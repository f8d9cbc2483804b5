"""Labels of Parquet files as numbers: where files say names, a class is known by its name, whatever their order."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from layers.errors import OvertoneError
from trainers.data.sources.parquet_shards import Shard, read_labels

__all__ = ["UNLABELED", "number_classes"]

UNLABELED = -1
"""Label of an image that has none, as test sets are published."""
_NAMED = 6

Labels = np.ndarray[Any, Any]


def number_classes(shards: Mapping[str, Sequence[Shard]]) -> tuple[dict[str, torch.Tensor], int]:
    """Return the labels of each part, int64 (n,), and the number of classes, by the files of each part.

    The first training file that declares names says which class has which number; without any, names that are texts
    are numbered in sorted order, and numbers are what they are. Raises OvertoneError for names that the training files
    lack, and for texts beside numbers that have no names.
    """
    read = {part: [read_labels(shard) for shard in of_part] for part, of_part in shards.items()}
    names = next((shard.names for shard in shards["train"] if shard.names), None)
    if names is None:
        texts = {text for found in read["train"] if _is_text(found) for text in found.tolist()}
        for shard, found in zip(shards["train"], read["train"], strict=True):
            if texts and not (_is_text(found) or shard.names):
                raise OvertoneError(_mixed(shard, "texts"))
        names = tuple(sorted(texts))
    labels = {}
    for part, of_part in shards.items():
        numbered = [_numbered(shard, found, names) for shard, found in zip(of_part, read[part], strict=True)]
        labels[part] = torch.from_numpy(np.concatenate(numbered).astype(np.int64))
    return labels, len(names) or max(labels["train"].tolist(), default=-1) + 1


def _is_text(labels: Labels) -> bool:
    return labels.dtype == object


def _numbered(shard: Shard, found: Labels, names: tuple[str, ...]) -> Labels:
    """Return a file's labels as numbers of the classes of these names."""
    if _is_text(found):
        own, places = np.unique(found.astype(str), return_inverse=True)
        return _by_name(shard, tuple(own.tolist()), places, names)
    if not (names and shard.names):
        return found
    outside = found[(found < UNLABELED) | (found >= len(shard.names))]
    if len(outside):
        raise OvertoneError(
            f"{str(shard.path)!r} has the label {outside[0]}, and names for 0 to {len(shard.names) - 1}"
        )
    return _by_name(shard, shard.names, found, names)


def _by_name(shard: Shard, own: tuple[str, ...], places: Labels, names: tuple[str, ...]) -> Labels:
    """Return the numbers of the classes own[place]; those of no class stay so."""
    numbers = {name: number for number, name in enumerate(names)}
    unknown = [name for name in own if name not in numbers]
    if unknown and not names:
        raise OvertoneError(_mixed(shard, "numbers without names"))
    if unknown:
        listed = ", ".join(map(repr, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")
        raise OvertoneError(f"{str(shard.path)!r} has the class {unknown[0]!r}; the training files have {listed}")
    numbered: Labels = np.array([*(numbers[name] for name in own), UNLABELED])[places]
    return numbered


def _mixed(shard: Shard, others: str) -> str:
    kind = f"labels of {str(shard.path)!r} (={shard.label_type})"
    return f"{kind} must be like those of the training files, which are {others}"
