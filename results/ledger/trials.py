"""The rows of a store's studies: appended, read, merged, and their front kept up to date.

What was read once is kept and added to, so that asking again after each trial costs what is new.
"""

import re
import uuid
from collections.abc import Sequence
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from layers.errors import OvertoneError
from results.ledger.codec import decode, encode
from results.ledger.compaction import Compaction, compact
from results.ledger.dedup import KEYS, deduplicate
from results.ledger.front_scan import Standing, advanced, computed
from results.ledger.segments import encode_segment, segment_name
from results.ledger.snapshot import Snapshot, TrialFiles, retry_on_compaction, trials_folder
from results.ledger.store import Store
from results.objectives import Objective
from results.schema import SCHEMA, TrialRow, to_table

__all__ = ["Trials"]

_MANY_CHUNKS = 256


class Trials:
    """Rows by study; the study's name is taken as it is."""

    def __init__(self, store: Store) -> None:
        self._store, self._files = store, TrialFiles(store)
        self._kept: dict[str, tuple[frozenset[str], pa.Table]] = {}
        self._standings: dict[str, Standing] = {}
        self._written: dict[str, pa.Table] = {}

    def append(self, row: TrialRow) -> str:
        """One row as one file, durable when this returns."""
        _check_ids([row.trial])
        name, table = f"{trials_folder(row.study)}/{row.trial}-{uuid.uuid4().hex}.parquet", to_table([row])
        self._store.write_bytes(name, encode(table))
        self._files.remember(name, table)
        return name

    def append_many(self, study: str, table: pa.Table, objectives: Sequence[Objective]) -> str:
        """Rows of one study as one segment, all durable when this returns or none."""
        _check_ids(pc.unique(table.column("trial")).to_pylist())
        name = f"{trials_folder(study)}/{segment_name()}"
        self._store.write_bytes(name, encode_segment(table, objectives))
        return name

    def rows(self, study: str) -> pa.Table:
        """One whole row a trial, by number and then trial."""
        return retry_on_compaction(lambda: self._rows(study))

    def columns(self, study: str, columns: Sequence[str]) -> pa.Table:
        """Some columns of the same; reads these and the keys alone."""
        return retry_on_compaction(lambda: self._columns(study, columns))

    def front(self, study: str, objectives: Sequence[Objective]) -> pa.Table:
        """The front of the trials that are not repeats."""
        return retry_on_compaction(lambda: self._standing(study, objectives)).members

    def write_front(self, study: str, objectives: Sequence[Objective]) -> pa.Table:
        """Keeps the front as Parquet where it has changed, with what the next process needs to go on from there."""
        members = (standing := retry_on_compaction(lambda: self._standing(study, objectives))).members
        if not members.equals(self._written.get(study)):
            self._store.write_bytes(_front(study), encode(members, standing.metadata(objectives)), durable=False)
            self._written[study] = members
        return members

    def compact(self, study: str, objectives: Sequence[Objective]) -> Compaction:
        """Merges the study's small files."""
        return retry_on_compaction(lambda: compact(self._store, self._files, study, objectives))

    def _rows(self, study: str) -> pa.Table:
        snapshot = self._files.snapshot(study)
        files, rows = self._kept.get(study, (frozenset(), SCHEMA.empty_table()))
        if files != snapshot.names:
            new = snapshot.added_since(files)
            rows = _joined(rows, self._read(new, study)) if new else deduplicate(self._read(snapshot, study))
            self._kept[study] = snapshot.names, rows
        return rows

    def _read(self, snapshot: Snapshot, study: str, columns: Sequence[str] = SCHEMA.names) -> pa.Table:
        chunks = (chunk for source in self._files.sources(snapshot, study) for chunk in source.chunks(columns))
        return pa.concat_tables([SCHEMA.empty_table().select(list(columns)), *chunks])

    def _columns(self, study: str, columns: Sequence[str]) -> pa.Table:
        snapshot = self._files.snapshot(study)
        if not snapshot.segments or self._kept.get(study, (None,))[0] == snapshot.names:
            return self._rows(study)
        return deduplicate(self._read(snapshot, study, list(dict.fromkeys([*KEYS, *columns]))))

    def _standing(self, study: str, objectives: Sequence[Objective]) -> Standing:
        snapshot = self._files.snapshot(study)
        last = self._standings.get(study) or self._load_standing(study, objectives)
        if last is None or last.files != snapshot.names:
            last = self._advanced(last, snapshot, study, objectives)
        self._standings[study] = last
        return last

    def _advanced(
        self, last: Standing | None, snapshot: Snapshot, study: str, objectives: Sequence[Objective]
    ) -> Standing:
        new = snapshot.added_since(last.files) if last else None
        everything = partial(self._files.sources, snapshot, study)
        if last and new:
            found = advanced(last, self._files.sources(new, study), everything, snapshot.names, objectives)
            if found:
                return found
        return computed(everything(), snapshot.names, objectives)

    def _load_standing(self, study: str, objectives: Sequence[Objective]) -> Standing | None:
        """The front that was kept, where it was for these objectives and is whole; None has it computed anew."""
        if not self._store.exists(_front(study)):
            return None
        try:
            data = self._store.read_bytes(_front(study))
            return Standing.loaded(data, decode(data, study=study, path=self._store.path_of(_front(study))), objectives)
        except OvertoneError:
            return None


def _joined(rows: pa.Table, new: pa.Table) -> pa.Table:
    """Rows that count and new ones; trials that are new and come later by number are put behind without copying."""
    if not new.num_rows:
        return rows
    new = deduplicate(new)
    joined = pa.concat_tables([rows, new])
    last, first = pc.max(rows.column("number")).as_py(), pc.min(new.column("number")).as_py()
    if last is not None and (last >= first or pc.any(pc.is_in(new.column("trial"), rows.column("trial"))).as_py()):
        return deduplicate(joined)
    return joined.combine_chunks() if joined.column(0).num_chunks > _MANY_CHUNKS else joined


def _check_ids(trials: Sequence[str]) -> None:
    for trial in trials:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", trial):
            raise OvertoneError(f"trial id {trial!r} must be made of letters, digits, _ and -")


def _front(study: str) -> str:
    return f"fronts/study={study}/front.parquet"
