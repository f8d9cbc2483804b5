"""The rows of a store's studies: appended, read and merged, and their fronts.

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
from results.ledger.snapshot import Snapshot, TrialFiles, retry_on_compaction, trials_folder
from results.ledger.store import Store
from results.objectives import Objective
from results.schema import SCHEMA, TrialRow, to_table

__all__ = ["Trials"]

_MANY_CHUNKS = 256


class Trials:
    """Rows by study; a study's name is not checked."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._files = TrialFiles(store)
        self._rows_read: dict[str, tuple[frozenset[str], pa.Table]] = {}
        self._fronts_written: dict[str, pa.Table] = {}

    def append(self, row: TrialRow) -> str:
        """Write one row as one file, durable when this returns, and return the file's name."""
        _check_ids([row.trial])
        name = f"{trials_folder(row.study)}/{row.trial}-{uuid.uuid4().hex}.parquet"
        table = to_table([row])
        self._store.write_bytes(name, encode(table))
        self._files.remember(name, table)
        return name

    def append_many(self, study: str, table: pa.Table, objectives: Sequence[Objective]) -> str:
        """Write rows of one study as one segment, all durable when this returns or none, and return its name."""
        _check_ids(pc.unique(table.column("trial")).to_pylist())
        name = f"{trials_folder(study)}/{segment_name()}"
        self._store.write_bytes(name, encode_segment(table, objectives))
        return name

    def rows(self, study: str) -> pa.Table:
        """Return one whole row a trial, by number and then trial."""
        return retry_on_compaction(lambda: self._rows(study))

    def columns(self, study: str, columns: Sequence[str]) -> pa.Table:
        """Return some columns of the same, and maybe more; of segments, read these and the keys alone."""
        return retry_on_compaction(lambda: self._columns(study, columns))

    def front(self, study: str, objectives: Sequence[Objective]) -> pa.Table:
        """Return the front of the trials that are no repeats, computed from all files."""
        return retry_on_compaction(
            lambda: compute_front(self._files.sources(self._files.snapshot(study), study), objectives)
        )

    def write_front(self, study: str, members: pa.Table) -> None:
        """Write the front as Parquet, unless it is what this object wrote last."""
        if not members.equals(self._fronts_written.get(study)):
            self._store.write_bytes(_front_file(study), encode(members), durable=False)
            self._fronts_written[study] = members

    def compact(self, study: str, objectives: Sequence[Objective]) -> Compaction:
        """Merge the study's small files."""
        return retry_on_compaction(lambda: compact(self._store, self._files, study, objectives))

    def _rows(self, study: str) -> pa.Table:
        snapshot = self._files.snapshot(study)
        names, rows = self._rows_read.get(study, (frozenset(), SCHEMA.empty_table()))
        if names != snapshot.names:
            added = snapshot.added_since(names)
            rows = _with_added(rows, self._read(added, study)) if added else deduplicate(self._read(snapshot, study))
            self._rows_read[study] = snapshot.names, rows
        return rows

    def _read(self, snapshot: Snapshot, study: str, columns: Sequence[str] = SCHEMA.names) -> pa.Table:
        chunks = (chunk for source in self._files.sources(snapshot, study) for chunk in source.chunks(columns))
        return pa.concat_tables([SCHEMA.empty_table().select(list(columns)), *chunks])

    def _columns(self, study: str, columns: Sequence[str]) -> pa.Table:
        snapshot = self._files.snapshot(study)
        if not snapshot.segments or self._rows_read.get(study, (None,))[0] == snapshot.names:
            return self._rows(study)
        return deduplicate(self._read(snapshot, study, list(dict.fromkeys([*KEYS, *columns]))))


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


def _front_file(study: str) -> str:
    return f"fronts/study={study}/front.parquet"
