"""Images in the Hugging Face parquet layout: train-*.parquet and test-*.parquet, each row an encoded image and a label.

Columns: `img` or `image`, a struct of {bytes, path}; `label`, an integer. Labels are read at once, images a row group
at a time, so that a few rows of a large set cost little.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from layers.errors import OvertoneError, UsageError
from trainers.decode import decode_all, decode_one, refuse
from trainers.sources import Source

__all__ = ["parquet_source"]


@dataclass(frozen=True, kw_only=True)
class _Shard:
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


def parquet_source(folder: str) -> Source:
    """Open the set; raises UsageError where the folder has no such files, OvertoneError for foreign or broken ones."""
    if not Path(folder).is_dir():
        raise UsageError(f"the folder {folder!r} of dataset 'parquet:{folder}' does not exist.")
    shards = {part: list(_shards(Path(folder), part)) for part in ("train", "test")}
    labels = {part: torch.cat([_labels(shard) for shard in shards[part]]) for part in shards}
    classes = _declared_classes(shards["train"][0]) or max(labels["train"].tolist(), default=-1) + 1
    first = _first_image(folder, shards["train"])

    def read(part: str, rows: torch.Tensor) -> torch.Tensor:
        out = torch.empty((len(rows), *first.shape), dtype=torch.uint8)
        faults = [fault for shard in shards[part] for fault in _fill(out, shard, rows)]
        refuse(f"parquet:{folder}", faults, len(rows))
        return out

    return Source(labels=labels, classes=classes, image_bytes=first.numel(), read=read)


def _shards(folder: Path, part: str) -> Iterator[_Shard]:
    paths, first_row = sorted(folder.glob(f"{part}-*.parquet")), 0
    if not paths:
        raise UsageError(
            f"the folder {str(folder)!r} has no {part}-*.parquet; it must have train-* and test-*.parquet."
        )
    for path in paths:
        with _reading(path):
            file = pq.ParquetFile(path)
        yield _Shard(file=file, path=path, column=_image_column(file.schema_arrow, path), first_row=first_row)
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


def _labels(shard: _Shard) -> torch.Tensor:
    with _reading(shard.path):
        column = shard.file.read(["label"]).column("label")
    if column.null_count:
        raise OvertoneError(f"{column.null_count} rows of {str(shard.path)!r} have no label.")
    return torch.tensor(column.to_numpy(), dtype=torch.int64)


def _declared_classes(shard: _Shard) -> int:
    """How many class names the file's own metadata lists; 0 where it lists none."""
    metadata = shard.file.schema_arrow.metadata or {}
    try:
        return len(json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"])
    except (KeyError, TypeError, ValueError):
        return 0


def _first_image(folder: str, shards: list[_Shard]) -> torch.Tensor:
    """The first training image that can be decoded: it says what size all must have."""
    for shard in shards:
        with _reading(shard.path):
            for batch in shard.file.iter_batches(batch_size=16, columns=[shard.column]):
                for row in batch.column(0).to_pylist():
                    with suppress(ValueError):
                        return decode_one(_encoded(row))
    raise OvertoneError(f"none of the training images of 'parquet:{folder}' can be decoded.")


def _fill(out: torch.Tensor, shard: _Shard, rows: torch.Tensor) -> Iterator[str]:
    """Decode into out those of the rows that this file holds; yields what is wrong, with file and row."""
    for group, first, count in shard.groups():
        places = ((rows >= first) & (rows < first + count)).nonzero().squeeze(1)
        if not len(places):
            continue
        with _reading(shard.path):
            table = shard.file.read_row_group(group, columns=[shard.column])
        found = table.take(pa.array((rows[places] - first).numpy())).column(0).to_pylist()
        images = dict(zip(places.tolist(), found, strict=True))
        faults = decode_all(out, list(images), partial(_encoded_at, images))
        for place, fault in faults.items():
            row = int(rows[place]) - shard.first_row
            yield f"{shard.path.name} row {row} ({(images[place] or {}).get('path')!r}) {fault}"


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever Arrow finds wrong with a file, as one sentence."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise OvertoneError(f"{str(path)!r} is not a readable Parquet file.") from error


def _encoded_at(images: dict[int, dict[str, Any] | None], place: int) -> bytes:
    return _encoded(images[place])


def _encoded(row: dict[str, Any] | None) -> bytes:
    return (row or {}).get("bytes") or b""
