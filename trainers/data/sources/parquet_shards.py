"""The files of a set in the Hugging Face parquet layout: train-*.parquet and test-*.parquet.

Columns: `img` or `image`, a struct of {bytes, path}; `label`, an integer.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from layers.errors import OvertoneError, UsageError

__all__ = ["Shard", "declared_classes", "encoded_batches", "open_shards", "read_labels", "reading"]

_BATCH = 64  # rows


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file, and the row of its part that it starts with."""

    file: pq.ParquetFile
    path: Path
    column: str
    first_row: int

    def groups(self) -> Iterator[tuple[int, int, int]]:
        """Number, first row and row count of each row group."""
        first = self.first_row
        for group in range(self.file.num_row_groups):
            count = self.file.metadata.row_group(group).num_rows
            yield group, first, count
            first += count


def open_shards(folder: Path, part: str) -> Iterator[Shard]:
    """The files of a part, by name; raises UsageError where there are none, OvertoneError for foreign ones."""
    paths, first_row = sorted(folder.glob(f"{part}-*.parquet")), 0
    if not paths:
        raise UsageError(
            f"the folder {str(folder)!r} has no {part}-*.parquet; it must have train-* and test-*.parquet."
        )
    for path in paths:
        with reading(path):
            file = pq.ParquetFile(path)
        yield Shard(file=file, path=path, column=_image_column(file.schema_arrow, path), first_row=first_row)
        first_row += file.metadata.num_rows


def _image_column(schema: pa.Schema, path: Path) -> str:
    """The image column; raises OvertoneError where the columns are not those of the layout."""
    for name in ("img", "image"):
        index = schema.get_field_index(name)
        if index >= 0 and pa.types.is_struct(schema.field(index).type) and "label" in schema.names:
            fields = {field.name for field in schema.field(index).type}
            if {"bytes", "path"} <= fields and pa.types.is_integer(schema.field("label").type):
                return name
    raise OvertoneError(
        f"{str(path)!r} has columns {', '.join(schema.names)}; it must have 'img' or 'image' {{bytes, path}} "
        f"and 'label' (integer)."
    )


def read_labels(shard: Shard) -> torch.Tensor:
    """int64 (n,); raises OvertoneError where one is missing."""
    with reading(shard.path):
        column = shard.file.read(["label"]).column("label")
    if column.null_count:
        raise OvertoneError(f"{column.null_count} rows of {str(shard.path)!r} have no label.")
    return torch.tensor(column.to_numpy(), dtype=torch.int64)


def declared_classes(shard: Shard) -> int:
    """How many class names the file's own metadata lists; 0 where it lists none."""
    metadata = shard.file.schema_arrow.metadata or {}
    try:
        return len(json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"])
    except (KeyError, TypeError, ValueError):
        return 0


def encoded_batches(shard: Shard) -> Iterator[pa.BinaryArray]:
    """The encoded images, some rows at a time; null where a row has none."""
    with reading(shard.path):
        for batch in shard.file.iter_batches(batch_size=_BATCH, columns=[f"{shard.column}.bytes"]):
            yield batch.column(0).flatten()[0]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever Arrow finds wrong with a file, as one sentence."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise OvertoneError(f"{str(path)!r} is not a readable Parquet file.") from error
