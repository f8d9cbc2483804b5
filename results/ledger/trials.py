"""The rows of one study: appended, read and merged, and their front.

Files that were read are remembered and new ones added, so that reading again after each trial costs only what is new.
"""

import re
import uuid
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from layers.errors import OvertoneError
from results.ledger.codec import encode
from results.ledger.compaction import Compaction, compact
from results.ledger.dedup import KEYS, deduplicate
from results.ledger.front_scan import compute_front
from results.ledger.segments import encode_segment, segment_name
from results.ledger.snapshot import Snapshot, TrialFiles, retry_on_compaction
from results.ledger.store import Store
from results.objectives import Objective
from results.schema import SCHEMA, TrialRow, to_table

__all__ = ["StudyTrials"]

_MANY_CHUNKS = 256


class StudyTrials:
    """The rows of one study, whose name is not checked."""

    def __init__(self, store: Store, study: str) -> None:
        self._store = store
        self._files = TrialFiles(store, study)
        self._front_file = f"fronts/study={study}/front.parquet"
        self._names_read: frozenset[str] = frozenset()
        self._rows_read = SCHEMA.empty_table()
        self._front_written: pa.Table | None = None

    def append(self, row: TrialRow) -> str:
        """Write one row as one file, durable when this returns, and return the file's name."""
        _check_ids([row.trial])
        name = f"{self._files.folder}/{row.trial}-{uuid.uuid4().hex}.parquet"
        table = to_table([row])
        self._store.write_bytes(name, encode(table))
        self._files.remember(name, table)
        return name

    def append_many(self, table: pa.Table, objectives: Sequence[Objective]) -> str:
        """Write rows as one segment, all durable when this returns or none, and return its name."""
        _check_ids(pc.unique(table.column("trial")).to_pylist())
        name = f"{self._files.folder}/{segment_name()}"
        self._store.write_bytes(name, encode_segment(table, objectives))
        return name

    def rows(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return one row a trial, by number and then trial.

        With `columns`, rows may have these alone: of segments nothing else is read but the keys.
        """
        return retry_on_compaction(lambda: self._current_rows(columns))

    def front(self, objectives: Sequence[Objective]) -> pa.Table:
        """Return the front of the finished trials that are no repeats, computed from all files."""
        return retry_on_compaction(lambda: compute_front(self._files.sources(self._files.snapshot()), objectives))

    def write_front(self, members: pa.Table) -> None:
        """Write the front as Parquet, unless it is what this object wrote last."""
        if not members.equals(self._front_written):
            self._store.write_bytes(self._front_file, encode(members), durable=False)
            self._front_written = members

    def compact(self, objectives: Sequence[Objective]) -> Compaction:
        """Merge the small files."""
        return retry_on_compaction(lambda: compact(self._store, self._files, objectives))

    def _current_rows(self, columns: Sequence[str] | None) -> pa.Table:
        snapshot = self._files.snapshot()
        if snapshot.names == self._names_read:
            return self._rows_read
        if columns is not None and snapshot.segments:
            return deduplicate(self._read(snapshot, list(dict.fromkeys([*KEYS, *columns]))))
        added = snapshot.added_since(self._names_read)
        rows = deduplicate(self._read(snapshot)) if added is None else _with_added(self._rows_read, self._read(added))
        self._names_read, self._rows_read = snapshot.names, rows
        return rows

    def _read(self, snapshot: Snapshot, columns: Sequence[str] = SCHEMA.names) -> pa.Table:
        chunks = (chunk for source in self._files.sources(snapshot) for chunk in source.chunks(columns))
        return pa.concat_tables([SCHEMA.empty_table().select(list(columns)), *chunks])


def _with_added(rows: pa.Table, added: pa.Table) -> pa.Table:
    """Return the rows that count of both; new trials of later numbers are appended without copying."""
    if not added.num_rows:
        return rows
    added = deduplicate(added)
    joined = pa.concat_tables([rows, added])
    last, first = pc.max(rows.column("number")).as_py(), pc.min(added.column("number")).as_py()
    if last is not None and (last >= first or pc.any(pc.is_in(added.column("trial"), rows.column("trial"))).as_py()):
        return deduplicate(joined)
    return joined.combine_chunks() if joined.column(0).num_chunks > _MANY_CHUNKS else joined


def _check_ids(trials: Sequence[str]) -> None:
    for trial in trials:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", trial):
            raise OvertoneError(f"trial id (={trial!r}) must be made of letters, digits, _ and -")
