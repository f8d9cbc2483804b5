"""The files of a set in the Hugging Face parquet layout: train-*.parquet and test-*.parquet.

Columns: `img` or `image`, a struct of {bytes, path}; `label`, an integer.
"""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from layers.errors import OvertoneError, UsageError, translate_errors

__all__ = ["Shard", "declared_classes", "encoded_batches", "open_shards", "parquet_errors", "read_labels"]

_BATCH = 64  # rows


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file, and the row of its part that it starts with."""

    file: pq.ParquetFile
    path: Path
    column: str
    """Name of the image column."""
    first_row: int

    def groups(self) -> Iterator[tuple[int, int, int]]:
        """Yield number, first row and row count of each row group."""
        first = self.first_row
        for group in range(self.file.num_row_groups):
            count = self.file.metadata.row_group(group).num_rows
            yield group, first, count
            first += count


def open_shards(folder: Path, part: str) -> Iterator[Shard]:
    """Yield the files of a part, by name; raise UsageError if there are none, OvertoneError for foreign ones."""
    paths, first_row = sorted(folder.glob(f"{part}-*.parquet")), 0
    if not paths:
        raise UsageError(f"the folder {str(folder)!r} has no {part}-*.parquet; it must have train-* and test-*.parquet")
    for path in paths:
        with parquet_errors(path):
            file = pq.ParquetFile(path)
        yield Shard(file=file, path=path, column=_image_column(file.schema_arrow, path), first_row=first_row)
        first_row += file.metadata.num_rows


def _image_column(schema: pa.Schema, path: Path) -> str:
    """Return the image column; raise OvertoneError if the columns are not those of the layout."""
    for name in ("img", "image"):
        index = schema.get_field_index(name)
        if index >= 0 and pa.types.is_struct(schema.field(index).type) and "label" in schema.names:
            fields = {field.name for field in schema.field(index).type}
            if {"bytes", "path"} <= fields and pa.types.is_integer(schema.field("label").type):
                return name
    raise OvertoneError(
        f"{str(path)!r} has columns {', '.join(schema.names)}; it must have 'img' or 'image' {{bytes, path}} "
        f"and 'label' (integer)"
    )


def read_labels(shard: Shard) -> torch.Tensor:
    """Return the labels, int64 (n,); raise OvertoneError if one is missing."""
    with parquet_errors(shard.path):
        column = shard.file.read(["label"]).column("label")
    if column.null_count:
        raise OvertoneError(f"{column.null_count} rows of {str(shard.path)!r} have no label")
    return torch.tensor(column.to_numpy(), dtype=torch.int64)


def declared_classes(shard: Shard) -> int:
    """Return how many class names the file's own metadata list; 0 if they list none."""
    metadata = shard.file.schema_arrow.metadata or {}
    try:
        return len(json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"])
    except (KeyError, TypeError, ValueError):
        return 0


def encoded_batches(shard: Shard) -> Iterator[pa.BinaryArray]:
    """Yield the encoded images, some rows at a time, with null for a row that has none."""
    with parquet_errors(shard.path):
        for batch in shard.file.iter_batches(batch_size=_BATCH, columns=[f"{shard.column}.bytes"]):
            yield batch.column(0).flatten()[0]


def parquet_errors(path: Path) -> AbstractContextManager[None]:
    """Return a context in which Arrow's errors become an OvertoneError that names the file."""
    return translate_errors(f"{str(path)!r} is not a readable Parquet file", OSError, pa.ArrowException)
