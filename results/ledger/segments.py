"""A segment: many rows of a study in one Parquet file, made by a batch of appends or by compaction.

Its metadata (key `overtone`, JSON) names the files that it replaces: they hold no other rows, and are deleted once the
segment is durable. The first row group holds the front of the segment's own rows, so that the full rows of a study's
front are read from few places; the rest comes by number. A trial stands in a segment once.
"""

import io
import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from layers.errors import OvertoneError
from results.ledger.codec import read_error, select_columns
from results.ledger.dedup import deduplicate
from results.ledger.store import Store
from results.objectives import Objective
from results.pareto.dominance import front_mask
from results.schema import LEDGER_VERSION, SCHEMA

__all__ = ["Segment", "encode_segment", "is_segment", "segment_name"]

_GROUP_ROWS = 65_536
_CHUNK_GROUPS = 8
_KEY = "overtone"
_PREFIX = "segment."  # a trial's id holds no dot, so that no trial can be taken for a segment


def segment_name() -> str:
    """A new name that no other segment has."""
    return f"{_PREFIX}{uuid.uuid4().hex}.parquet"


def is_segment(name: str) -> bool:
    """Whether a file of this name is a segment."""
    return name.rpartition("/")[2].startswith(_PREFIX)


def encode_segment(table: pa.Table, objectives: Sequence[Objective], replaces: Sequence[str] = ()) -> bytes:
    """Rows of the ledger's schema as the bytes of one segment, its own front first."""
    table = deduplicate(table).combine_chunks()
    first = front_mask(table, objectives)
    said = json.dumps({"ledger_version": LEDGER_VERSION, "replaces": list(replaces)})
    plain = table.drop_columns(["study"])
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, plain.schema, compression="zstd", compression_level=1, store_schema=False) as writer:
        if first.any():
            writer.write_table(plain.filter(pa.array(first)))
        writer.write_table(plain.filter(pa.array(~first)) if first.any() else plain, row_group_size=_GROUP_ROWS)
        writer.add_key_value_metadata({_KEY: said})
    return sink.getvalue()


class Segment:
    """The rows of one segment, read by column and row group; opening one reads its footer alone."""

    def __init__(self, store: Store, name: str, study: str) -> None:
        self.name = name
        self._store, self._study = store, study
        self._footer = self._file().metadata
        said = self._said()
        self.replaces = frozenset(said["replaces"])
        self.num_rows: int = self._footer.num_rows

    @property
    def latest(self) -> int:
        """A time (microseconds) after which no trial ended, as the footer says it."""
        return max(self._newest(group) for group in range(self._footer.num_row_groups))

    def chunks(self, columns: Sequence[str], *, since: int | None = None) -> Iterator[pa.Table]:
        """The rows in the file's order, some 500,000 at a time.

        With `since` (microseconds), row groups in which every trial had ended before are left out.
        """
        groups = [
            group for group in range(self._footer.num_row_groups) if since is None or self._newest(group) >= since
        ]
        for start in range(0, len(groups), _CHUNK_GROUPS):
            yield self._read(groups[start : start + _CHUNK_GROUPS], columns)

    def take(self, rows: npt.NDArray[np.int64]) -> pa.Table:
        """Whole rows by their ascending positions in the file; reads the row groups they are in."""
        counts = [self._footer.row_group(group).num_rows for group in range(self._footer.num_row_groups)]
        starts = np.cumsum([0, *counts])
        pieces = [SCHEMA.empty_table()]
        for group in np.unique(np.searchsorted(starts, rows, side="right") - 1):
            inside = rows[(rows >= starts[group]) & (rows < starts[group + 1])] - starts[group]
            pieces.append(self._read([int(group)], SCHEMA.names).take(inside))
        return pa.concat_tables(pieces)

    def _read(self, groups: Sequence[int], columns: Sequence[str]) -> pa.Table:
        path = self._store.path_of(self.name)
        try:
            table = self._file(self._footer).read_row_groups(groups, [name for name in columns if name != "study"])
        except (OSError, pa.ArrowException) as error:
            raise read_error(path, error) from None
        return select_columns(table, columns, study=self._study, path=path)

    def _file(self, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
        source = self._store.open(self.name)
        try:
            return pq.ParquetFile(source, metadata=footer, pre_buffer=True)
        except (OSError, pa.ArrowException) as error:
            raise read_error(self._store.path_of(self.name), error) from None

    def _said(self) -> dict[str, Any]:
        path = self._store.path_of(self.name)
        try:
            said: dict[str, Any] = json.loads((self._footer.metadata or {})[_KEY.encode()])
            version, _ = int(said["ledger_version"]), frozenset(said["replaces"])
        except (ValueError, KeyError, TypeError):
            raise OvertoneError(
                f"{path!r} is not a segment of Overtone: its metadata {_KEY!r} does not say so"
            ) from None
        if version > LEDGER_VERSION:
            raise OvertoneError(f"{path!r} has schema version {version}, newer than {LEDGER_VERSION}: update overtone")
        return said

    def _newest(self, group: int) -> int:
        """The latest `finished_at` of a row group in microseconds; beyond all times where the file does not say."""
        found = self._footer.row_group(group)
        columns = (found.column(index) for index in range(found.num_columns))
        statistics = next((c.statistics for c in columns if c.path_in_schema == "finished_at"), None)
        if statistics is None or not statistics.has_min_max:
            return int(np.iinfo(np.int64).max)
        return int(pa.scalar(statistics.max, SCHEMA.field("finished_at").type).value)
