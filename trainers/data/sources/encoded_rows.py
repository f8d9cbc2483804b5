"""Encoded images in one Arrow file of a column of bytes, uncompressed, mapped and read by row.

A Parquet file gives whole row groups, but rows in random order need this. The file is written a batch at a time.
"""

import json
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path

import pyarrow as pa

from trainers.runtime.cache import CACHE_VERSION, cached_path, write_cached_file

__all__ = ["ArrowRows", "open_rows", "write_rows"]

_CARD = b"overtone"


class ArrowRows:
    """The rows of a mapped file; any thread may read them."""

    def __init__(self, batches: list[pa.BinaryArray]) -> None:
        self._batches = batches
        self._ends = list(accumulate(len(batch) for batch in batches))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, row: int) -> bytes:
        """Return the bytes at a row of 0..n-1, b'' for a null."""
        batch = bisect_right(self._ends, row)
        return self._batches[batch][row - self._ends[batch]].as_py() or b""


def open_rows(key: str) -> ArrowRows | None:
    """Map what `write_rows` left under a key of the cache; None if there is no file that can be used."""
    try:
        file = pa.ipc.open_file(pa.memory_map(str(cached_path(key, "arrow"))))
        if json.loads((file.schema.metadata or {})[_CARD]) != _card(key):
            return None
        return ArrowRows([file.get_batch(index).column(0) for index in range(file.num_record_batches)])
    except (OSError, pa.ArrowException, LookupError, ValueError):
        return None


def write_rows(key: str, batches: Iterable[pa.BinaryArray]) -> None:
    """Write the rows to the cache, batch by batch; raise OSError if that is not possible."""
    schema = pa.schema([("bytes", pa.binary())], metadata={_CARD: json.dumps(_card(key))})

    def write(path: Path) -> None:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
            for batch in batches:
                file.write_batch(pa.record_batch([batch], schema=schema))

    write_cached_file(cached_path(key, "arrow"), write)


def _card(key: str) -> dict[str, object]:
    return {"version": CACHE_VERSION, "key": key}
