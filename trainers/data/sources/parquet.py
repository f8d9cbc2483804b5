"""Images in the Hugging Face parquet layout, each row an encoded image and a label.

Labels are read at once, images a row group at a time, so that a few rows of a large set cost little. To stream rows in
any order, the encoded images are first written into a file that gives them by row (`encoded_rows`).
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

from layers.errors import OvertoneError, UsageError, first_line
from trainers.data.decode import AdvanceFn, Transform, decode_all, decode_one
from trainers.data.manifest import Manifest, content_sha256, file_sizes, parquet_root, read_manifest
from trainers.data.resize import ResizeAndCrop
from trainers.data.sources.class_names import UNLABELED, number_classes
from trainers.data.sources.encoded_rows import ArrowRows, open_rows, write_rows
from trainers.data.sources.parquet_shards import (
    Shard,
    encoded_batches,
    open_shards,
    parquet_errors,
)
from trainers.data.sources.source import Source
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
        """Return the bytes of an image, b'' if it has none."""
        return self.open().rows[row]

    def name(self, row: int) -> str:
        """Return the image's file and its row there."""
        starts = reversed(self.open().starts)
        return next(f"{name} row {row - first}" for name, first in starts if row >= first)

    def open(self) -> "_MappedRows":
        """Return the rows, mapped once per process; write them first if this machine has none yet."""
        with _LOCK:
            return _map_rows(self)


@dataclass(frozen=True, kw_only=True)
class _MappedRows:
    rows: ArrowRows
    starts: list[tuple[str, int]]
    """Name of each file, and the row that it starts with."""


_LOCK = Lock()


@lru_cache(maxsize=8)
def _map_rows(images: ParquetImages) -> _MappedRows:
    manifest = [entry for entry in read_manifest("parquet", images.folder) if entry[0].startswith("train")]
    if file_sizes(manifest, "train") != images.shards:
        raise OvertoneError(f"the files of 'parquet:{images.folder}' have changed since the set was opened")
    shards = open_shards(parquet_root(images.folder), "train")
    key = cache_key("rows", os.path.realpath(images.folder), manifest)
    rows = open_rows(key)
    if rows is None:
        rows = _write_rows(key, images.folder, shards)
    return _MappedRows(rows=rows, starts=[(shard.path.name, shard.first_row) for shard in shards])


def _write_rows(key: str, folder: str, shards: list[Shard]) -> ArrowRows:
    try:
        write_rows(key, (batch for shard in shards for batch in encoded_batches(shard)))
        rows = open_rows(key)
        if rows is None:
            raise OSError("it cannot be read back")
    except OSError as error:
        raise OvertoneError(
            f"cannot write the encoded images of 'parquet:{folder}', which stream needs: {first_line(error)}; "
            f"OVERTONE_CACHE may name a folder with room for them"
        ) from error
    return rows


def parquet_source(
    folder: str, image_size: int | None = None, resize_size: int | None = None, interpolation: str | None = None
) -> Source:
    """Open the set; raise UsageError if the folder has no such files, OvertoneError for foreign or broken ones.

    Images are turned by their EXIF orientation, as `datasets` does. All must have one size, unless they are resized;
    the shorter side is `image_size` by default if the first image measures that, else as `ResizeAndCrop.usual` says.
    """
    if not Path(folder).is_dir():
        raise UsageError(f"the folder {folder!r} of dataset 'parquet:{folder}' does not exist")
    shards = _open_parts(folder)
    labels, classes = number_classes(shards)
    if not len(labels["train"]):
        raise OvertoneError(f"the train-*.parquet of 'parquet:{folder}' have no rows")
    shards, labels, sentence = _without_unlabeled(folder, shards, labels)
    first, transform = _first_image(folder, shards["train"]), None
    shape = tuple(first.shape)
    if image_size is not None:
        exact = image_size if shape == (3, image_size, image_size) else None
        transform = ResizeAndCrop.usual(image_size, resize_size or exact, interpolation)
        shape = (3, image_size, image_size)

    def read(
        part: str, rows: torch.Tensor, advance: AdvanceFn = lambda count: None
    ) -> tuple[torch.Tensor, dict[int, str]]:
        out = torch.empty((len(rows), *shape), dtype=torch.uint8)
        errors = (_decode_shard(out, shard, rows, transform, advance) for shard in shards[part])
        return out, {index: error for of_shard in errors for index, error in of_shard}

    def stream(rows: torch.Tensor, manifest: Manifest) -> StreamedImages:
        encoded = ParquetImages(folder=os.path.abspath(folder), shards=file_sizes(manifest, "train"))
        encoded.open()  # written here, once, before several trials need it
        return StreamedImages(
            encoded=encoded,
            rows=rows,
            image_shape=(3, shape[1], shape[2]),
            transform=transform,
            upright=True,
            content=content_sha256(manifest, "train"),
        )

    return Source(
        labels=labels,
        classes=classes,
        image_bytes=shape[0] * shape[1] * shape[2],
        read=read,
        stream=stream,
        warnings=(sentence,) if sentence else (),
    )


def _open_parts(folder: str) -> dict[str, list[Shard]]:
    """Return the files of each part that has some; raise UsageError if training or test files are missing."""
    root = parquet_root(folder)
    found = {part: open_shards(root, part) for part in ("train", "validation", "test")}
    if not found["train"] or not (found["test"] or found["validation"]):
        part = "test" if found["train"] else "train"
        raise UsageError(
            f"the folder {str(root)!r} has no {part}-*.parquet; it must have train-*, and test-* or validation-*"
        )
    return {part: shards for part, shards in found.items() if shards}


def _without_unlabeled(
    folder: str, shards: dict[str, list[Shard]], labels: dict[str, torch.Tensor]
) -> tuple[dict[str, list[Shard]], dict[str, torch.Tensor], str]:
    """Return the parts that have labels, and a sentence about the others; `validation` is the test part if it must."""
    shards, labels, sentence = dict(shards), dict(labels), ""
    for part in ("validation", "test"):
        if part in labels and bool((labels[part] == UNLABELED).all()):
            del shards[part], labels[part]
            instead = "" if part == "validation" else "; images of another part are the test images"
            sentence = f"the {part} images of 'parquet:{folder}' have no labels and are not used{instead}"
    if "test" not in labels and "validation" in labels:
        shards["test"], labels["test"] = shards.pop("validation"), labels.pop("validation")
    return shards, labels, sentence


def _first_image(folder: str, shards: list[Shard]) -> torch.Tensor:
    """Return the first training image that can be decoded: all others must have its size."""
    for shard in shards:
        for batch in encoded_batches(shard):
            for encoded in batch:
                with suppress(ValueError):
                    return decode_one(encoded.as_py() or b"", upright=True)
    raise OvertoneError(
        f"none of the training images of 'parquet:{folder}' can be decoded; they must be within the files, as bytes"
    )


def _decode_shard(
    out: torch.Tensor, shard: Shard, rows: torch.Tensor, transform: Transform | None, advance: AdvanceFn
) -> Iterator[tuple[int, str]]:
    """Decode into out those of the rows that this file holds; yield index and error of each unusable image."""
    for group, first, count in shard.groups():
        indices = ((rows >= first) & (rows < first + count)).nonzero().squeeze(1)
        if not len(indices):
            continue
        with parquet_errors(shard.path):
            table = shard.file.read_row_group(group, columns=[shard.column])
        structs = table.take(pa.array((rows[indices] - first).numpy())).column(0).to_pylist()
        images = dict(zip(indices.tolist(), structs, strict=True))
        errors = decode_all(out, list(images), partial(_encoded_bytes, images), transform, advance, upright=True)
        for index, error in errors.items():
            row, struct = int(rows[index]) - shard.first_row, images[index] or {}
            is_path = struct.get("bytes") is None and struct.get("path") is not None
            reason = "is a path, not the bytes of an image" if is_path else error
            yield index, f"{shard.path.name} row {row} ({struct.get('path')!r}) {reason}"


def _encoded_bytes(images: dict[int, dict[str, Any] | None], index: int) -> bytes:
    return (images[index] or {}).get("bytes") or b""
