"""Images in the Hugging Face parquet layout, each row an encoded image and a label.

Labels are read at once, images a row group at a time, so that a few rows of a large set cost little. Where rows are
wanted in any order, the encoded images are first written into a file that gives them by row (`arrowfile`).
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import torch

from layers.errors import OvertoneError, UsageError
from trainers.data.decode import ProgressFn, decode_all, decode_one
from trainers.data.manifest import Manifest, content_of, read_manifest, sizes_of
from trainers.data.sources.builtin import Source
from trainers.data.sources.encoded_rows import ArrowRows, open_rows, write_rows
from trainers.data.sources.parquet_shards import (
    Shard,
    declared_classes,
    encoded_batches,
    open_shards,
    read_labels,
    reading,
)
from trainers.data.stream import StreamedImages
from trainers.runtime.cache import cache_key

__all__ = ["ParquetImages", "parquet_source"]


@dataclass(frozen=True, kw_only=True)
class ParquetImages:
    """The encoded training images of a set, by row."""

    folder: str
    shards: tuple[tuple[str, int], ...]
    """Name and size of each file."""

    def read(self, row: int) -> bytes:
        """The bytes of an image, b'' where there are none."""
        return self.open().rows[row]

    def name(self, row: int) -> str:
        """File and row in it."""
        starts = reversed(self.open().starts)
        return next(f"{name} row {row - first}" for name, first in starts if row >= first)

    def open(self) -> "_Opened":
        """The rows, mapped once a process; written where this machine has none yet."""
        with _OPENING:
            return _open(self)


@dataclass(frozen=True, kw_only=True)
class _Opened:
    rows: ArrowRows
    starts: list[tuple[str, int]]
    """Each file, and the row that it starts with."""


_OPENING = Lock()


@lru_cache(maxsize=8)
def _open(images: ParquetImages) -> _Opened:
    listing = [entry for entry in read_manifest("parquet", images.folder) if entry[0].startswith("train")]
    if sizes_of(listing, "train") != images.shards:
        raise OvertoneError(f"the files of 'parquet:{images.folder}' are not those that were found there at first.")
    shards = list(open_shards(Path(images.folder), "train"))
    key = cache_key("rows", os.path.realpath(images.folder), listing)
    rows = open_rows(key)
    if rows is None:
        rows = _written(key, images.folder, shards)
    return _Opened(rows=rows, starts=[(shard.path.name, shard.first_row) for shard in shards])


def _written(key: str, folder: str, shards: list[Shard]) -> ArrowRows:
    try:
        write_rows(key, (batch for shard in shards for batch in encoded_batches(shard)))
        rows = open_rows(key)
        if rows is None:
            raise OSError("it cannot be read back")
    except OSError as error:
        raise OvertoneError(
            f"stream needs a file of the encoded images of 'parquet:{folder}', which cannot be kept ({error}); "
            f"OVERTONE_CACHE may name a folder that can hold it."
        ) from error
    return rows


def parquet_source(folder: str) -> Source:
    """Open the set; raises UsageError where the folder has no such files, OvertoneError for foreign or broken ones."""
    if not Path(folder).is_dir():
        raise UsageError(f"the folder {folder!r} of dataset 'parquet:{folder}' does not exist.")
    shards = {part: list(open_shards(Path(folder), part)) for part in ("train", "test")}
    labels = {part: torch.cat([read_labels(shard) for shard in shards[part]]) for part in shards}
    if not len(labels["train"]):
        raise OvertoneError(f"the train-*.parquet of 'parquet:{folder}' have no rows.")
    classes = declared_classes(shards["train"][0]) or max(labels["train"].tolist(), default=-1) + 1
    first = _first_image(folder, shards["train"])

    def read(
        part: str, rows: torch.Tensor, told: ProgressFn = lambda count: None
    ) -> tuple[torch.Tensor, dict[int, str]]:
        out = torch.empty((len(rows), *first.shape), dtype=torch.uint8)
        return out, dict(fault for shard in shards[part] for fault in _fill(out, shard, rows, told))

    def stream(rows: torch.Tensor, listing: Manifest) -> StreamedImages:
        encoded = ParquetImages(folder=os.path.abspath(folder), shards=sizes_of(listing, "train"))
        encoded.open()  # written here, once, before several trials ask for it
        _, height, width = first.shape
        content = content_of(listing, "train")
        return StreamedImages(encoded=encoded, rows=rows, image_shape=(3, height, width), content=content)

    return Source(labels=labels, classes=classes, image_bytes=first.numel(), read=read, stream=stream)


def _first_image(folder: str, shards: list[Shard]) -> torch.Tensor:
    """The first training image that can be decoded: it says what size all must have."""
    for shard in shards:
        for batch in encoded_batches(shard):
            for encoded in batch:
                with suppress(ValueError):
                    return decode_one(encoded.as_py() or b"")
    raise OvertoneError(f"none of the training images of 'parquet:{folder}' can be decoded.")


def _fill(out: torch.Tensor, shard: Shard, rows: torch.Tensor, told: ProgressFn) -> Iterator[tuple[int, str]]:
    """Decode into out those of the rows that this file holds; yields places and what is wrong, with file and row."""
    for group, first, count in shard.groups():
        places = ((rows >= first) & (rows < first + count)).nonzero().squeeze(1)
        if not len(places):
            continue
        with reading(shard.path):
            table = shard.file.read_row_group(group, columns=[shard.column])
        found = table.take(pa.array((rows[places] - first).numpy())).column(0).to_pylist()
        images = dict(zip(places.tolist(), found, strict=True))
        faults = decode_all(out, list(images), partial(_encoded_at, images), told=told)
        for place, fault in faults.items():
            row = int(rows[place]) - shard.first_row
            yield place, f"{shard.path.name} row {row} ({(images[place] or {}).get('path')!r}) {fault}"


def _encoded_at(images: dict[int, dict[str, Any] | None], place: int) -> bytes:
    return (images[place] or {}).get("bytes") or b""
