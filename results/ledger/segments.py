"""A segment: many rows of a study in one Parquet file, made by a batch of appends or by compaction.

Its metadata (key `overtone`, JSON) names the files that it replaces: they hold no other rows, and are deleted once the
segment is durable. The first row group holds the front of the segment's own rows, so that the whole rows of a study's
front are read from few places; the rest is ordered by number. A segment holds one row a trial.
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
from results.ledger.codec import check_version, read_errors, refuse_prerelease, select_columns
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
    """Return a new name that no other segment has."""
    return f"{_PREFIX}{uuid.uuid4().hex}.parquet"


def is_segment(name: str) -> bool:
    """Return whether a file of this name is a segment."""
    return name.rpartition("/")[2].startswith(_PREFIX)


def encode_segment(table: pa.Table, objectives: Sequence[Objective], replaces: Sequence[str] = ()) -> bytes:
    """Return rows of the ledger's schema as the bytes of one segment, its own front first."""
    table = deduplicate(table).combine_chunks()
    members = front_mask(table, objectives)
    metadata = json.dumps({"ledger_version": LEDGER_VERSION, "replaces": list(replaces)})
    columns = table.drop_columns(["study"])
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, columns.schema, compression="zstd", compression_level=1, store_schema=False) as writer:
        if members.any():
            writer.write_table(columns.filter(pa.array(members)))
        writer.write_table(columns.filter(pa.array(~members)) if members.any() else columns, row_group_size=_GROUP_ROWS)
        writer.add_key_value_metadata({_KEY: metadata})
    return sink.getvalue()


class Segment:
    """The rows of one segment, read by column and row group; opening one reads its footer alone."""

    def __init__(self, store: Store, name: str, study: str) -> None:
        self.name = name
        self._path = store.path_of(name)
        self._store = store
        self._study = study
        self._footer = self._file().metadata
        self.replaces = frozenset[str](self._metadata()["replaces"])
        self.num_rows: int = self._footer.num_rows

    def chunks(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the rows in the file's order, some 500,000 at a time."""
        groups = range(self._footer.num_row_groups)
        for start in range(0, len(groups), _CHUNK_GROUPS):
            yield self._read(groups[start : start + _CHUNK_GROUPS], columns)

    def take(self, rows: npt.NDArray[np.int64]) -> pa.Table:
        """Return whole rows by their ascending positions in the file; read only the row groups they are in."""
        counts = [self._footer.row_group(group).num_rows for group in range(self._footer.num_row_groups)]
        starts = np.cumsum([0, *counts])
        pieces = [SCHEMA.empty_table()]
        for group in np.unique(np.searchsorted(starts, rows, side="right") - 1):
            inside = rows[(rows >= starts[group]) & (rows < starts[group + 1])] - starts[group]
            pieces.append(self._read([int(group)], SCHEMA.names).take(inside))
        return pa.concat_tables(pieces)

    def _read(self, groups: Sequence[int], columns: Sequence[str]) -> pa.Table:
        with read_errors(self._path):
            table = self._file(self._footer).read_row_groups(groups, [name for name in columns if name != "study"])
        return select_columns(table, columns, study=self._study, path=self._path)

    def _file(self, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
        source = self._store.open(self.name)
        with read_errors(self._path):
            return pq.ParquetFile(source, metadata=footer, pre_buffer=True)

    def _metadata(self) -> dict[str, Any]:
        try:
            metadata: dict[str, Any] = json.loads((self._footer.metadata or {})[_KEY.encode()])
            refuse_prerelease(metadata, self._path)
            version, _ = int(metadata["ledger_version"]), frozenset(metadata["replaces"])
        except (ValueError, KeyError, TypeError):
            raise OvertoneError(
                f"{self._path!r} is not a segment of Overtone: its metadata {_KEY!r} does not say so"
            ) from None
        check_version(version, LEDGER_VERSION, self._path)
        return metadata
