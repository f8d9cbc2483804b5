"""The files of one part of a set in the Hugging Face parquet layout.

Columns: `img` or `image` (else the one that the file's metadata call an image), a struct of {bytes, path}; and `label`
or `labels` (else the one that they call a class label), whole numbers or texts.
"""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from layers.errors import OvertoneError, translate_errors
from trainers.data.manifest import parquet_names

__all__ = ["Shard", "encoded_batches", "open_shards", "parquet_errors", "read_labels"]

_BATCH = 64  # rows


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file, and the row of its part that it starts with."""

    file: pq.ParquetFile
    path: Path
    column: str
    """Name of the image column."""
    label: str
    """Name of the label column."""
    names: tuple[str, ...]
    """Names of the classes by their number, as the file's own metadata declare them; none if they declare none."""
    first_row: int

    @property
    def label_type(self) -> pa.DataType:
        """Type of the label column."""
        return self.file.schema_arrow.field(self.label).type

    def groups(self) -> Iterator[tuple[int, int, int]]:
        """Yield number, first row and row count of each row group."""
        first = self.first_row
        for group in range(self.file.num_row_groups):
            count = self.file.metadata.row_group(group).num_rows
            yield group, first, count
            first += count


def open_shards(folder: Path, part: str) -> list[Shard]:
    """Return the files of a part in order, none if there are none; raise OvertoneError for foreign ones."""
    shards: list[Shard] = []
    first_row = 0
    for name in parquet_names(folder, part):
        path = folder / name
        with parquet_errors(path):
            file = pq.ParquetFile(path)
        features = _features(file.schema_arrow)
        column, label = _columns(file.schema_arrow, features, path)
        names = _declared_names(features.get(label), path)
        shards.append(Shard(file=file, path=path, column=column, label=label, names=names, first_row=first_row))
        first_row += file.metadata.num_rows
    return shards


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Return what the metadata of `datasets` say about each column, nothing if there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _columns(schema: pa.Schema, features: dict[str, Any], path: Path) -> tuple[str, str]:
    """Return the columns of images and labels; raise OvertoneError, with the types found, if they are not there."""

    def called(kind: str) -> list[str]:
        return [name for name, told in features.items() if isinstance(told, dict) and told.get("_type") == kind]

    images = [name for name in ("img", "image") if name in schema.names] or called("Image")
    labels = [name for name in ("label", "labels") if name in schema.names] or called("ClassLabel")
    images = [name for name in images if name in schema.names and _is_image(schema.field(name).type)]
    labels = [name for name in labels if name in schema.names and _is_label(schema.field(name).type)]
    known = images[0] in ("img", "image") if images else False
    if images and labels and (known or len(images) == 1) and (labels[0] in ("label", "labels") or len(labels) == 1):
        return images[0], labels[0]
    found = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise OvertoneError(
        f"{str(path)!r} has columns {found}; it must have 'img' or 'image' {{bytes, path}} and 'label' or 'labels' "
        "(whole numbers or texts)"
    )


def _is_image(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}


def _is_label(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_boolean(kind) or _is_text(kind)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _declared_names(feature: Any, path: Path) -> tuple[str, ...]:
    names = feature.get("names") if isinstance(feature, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    if len(set(names)) < len(names):
        raise OvertoneError(f"{str(path)!r} declares a class twice: {', '.join(names)}")
    return tuple(names)


def read_labels(shard: Shard) -> np.ndarray[Any, Any]:
    """Return the labels (n,), int64 or texts, -1 for none; raise OvertoneError if some are missing but not all."""
    with parquet_errors(shard.path):
        column = shard.file.read([shard.label]).column(shard.label)
        if 0 < column.null_count < len(column):
            raise OvertoneError(f"{column.null_count} rows of {str(shard.path)!r} have no label")
        if column.null_count:
            return np.full(len(column), -1)
        if _is_text(shard.label_type):
            return np.array(column.cast(pa.large_string()).to_pylist(), dtype=object)
        return np.asarray(column.cast(pa.int64()).to_numpy())


def encoded_batches(shard: Shard) -> Iterator[pa.BinaryArray]:
    """Yield the encoded images, some rows at a time, with null for a row that has none."""
    with parquet_errors(shard.path):
        for batch in shard.file.iter_batches(batch_size=_BATCH, columns=[f"{shard.column}.bytes"]):
            yield batch.column(0).flatten()[0].cast(pa.binary())


def parquet_errors(path: Path) -> AbstractContextManager[None]:
    """Return a context in which Arrow's errors become an OvertoneError that names the file."""
    return translate_errors(f"{str(path)!r} is not a readable Parquet file", OSError, pa.ArrowException)
