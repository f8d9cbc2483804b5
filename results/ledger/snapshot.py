"""The trial files of a study at one moment: single rows, segments, and which of them still count.

Files never change once they have a name, so what was read of one is kept. A file that a segment names as replaced
counts no more, even while it lies there. One that vanishes between listing and reading was replaced: look again.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from results.ledger.codec import decode
from results.ledger.segments import Segment, is_segment
from results.ledger.store import MissingFile, Store
from results.schema import SCHEMA

__all__ = ["TableSource", "Snapshot", "Source", "TrialFiles", "retry_on_compaction", "trials_folder"]

_T = TypeVar("_T")
_ATTEMPTS = 5


class Source(Protocol):
    """Rows of one study, in memory or in a segment."""

    num_rows: int

    @property
    def latest(self) -> int:
        """A time (microseconds) after which no trial ended."""

    def chunks(self, columns: Sequence[str], *, since: int | None = None) -> Iterator[pa.Table]:
        """The rows in pieces, of the asked columns; with `since`, those that ended then or later, and maybe more."""

    def take(self, rows: npt.NDArray[np.int64]) -> pa.Table:
        """Whole rows by their ascending positions."""


class TableSource:
    """Rows in memory as a source."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.num_rows = table.num_rows

    @property
    def latest(self) -> int:
        """When the last trial ended, in microseconds."""
        return int(pc.max(self._table.column("finished_at").cast(pa.int64())).as_py() or 0)

    def chunks(self, columns: Sequence[str], *, since: int | None = None) -> Iterator[pa.Table]:
        """All rows, or those that ended at `since` (microseconds) or later."""
        table = self._table
        if since is not None:
            table = table.filter(pc.greater_equal(table.column("finished_at").cast(pa.int64()), since))
        yield table.select(list(columns))

    def take(self, rows: npt.NDArray[np.int64]) -> pa.Table:
        """Whole rows by their positions."""
        return self._table.take(rows)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Which files count, at the moment of listing."""

    row_files: tuple[str, ...]
    segments: tuple[Segment, ...]
    replaced: tuple[str, ...] = ()
    """Files that a segment has replaced and that were not deleted yet."""

    @property
    def names(self) -> frozenset[str]:
        """The names of the files that count."""
        return frozenset(self.row_files) | {segment.name for segment in self.segments}

    def added_since(self, seen: frozenset[str]) -> "Snapshot | None":
        """The files whose rows were not in `seen`; None where a seen file has gone without a segment in its place."""
        later = [segment for segment in self.segments if segment.name not in seen]
        if seen - self.names - frozenset[str]().union(*(segment.replaces for segment in later)):
            return None
        return Snapshot(
            row_files=tuple(name for name in self.row_files if name not in seen),
            segments=tuple(s for s in later if not s.replaces or not s.replaces <= seen),
        )


class TrialFiles:
    """Lists and reads the trial files of a store's studies, each file once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._singles: dict[str, pa.Table] = {}
        self._segments: dict[str, Segment] = {}

    def remember(self, name: str, rows: pa.Table) -> None:
        """What was just written need not be read."""
        self._singles[name] = rows

    def snapshot(self, study: str) -> Snapshot:
        """What is there now; reads the footers of segments that are new."""
        folder = trials_folder(study)
        names = self._store.list(folder, ".parquet")
        for kept in (self._singles, self._segments):
            for name in [name for name in kept.keys() - set(names) if name.startswith(f"{folder}/")]:
                del kept[name]
        segments = [self._segment(name, study) for name in names if is_segment(name)]
        replaced = frozenset[str]().union(*(segment.replaces for segment in segments))
        return Snapshot(
            row_files=tuple(name for name in names if not is_segment(name) and name not in replaced),
            segments=tuple(segment for segment in segments if segment.name not in replaced),
            replaced=tuple(name for name in names if name in replaced),
        )

    def sources(self, snapshot: Snapshot, study: str) -> list[Source]:
        """The rows of the files that count: the single ones as one source, then each segment."""
        row_files = [TableSource(self.row_files(snapshot.row_files, study))] if snapshot.row_files else []
        return [*row_files, *snapshot.segments]

    def row_files(self, names: Sequence[str], study: str) -> pa.Table:
        """The rows of single files in the order of `names`; an unreadable one is an OvertoneError naming it."""
        new = [name for name in names if name not in self._singles]
        if new:
            with ThreadPoolExecutor(max_workers=8) as pool:
                self._singles.update(zip(new, pool.map(lambda name: self._read(name, study), new), strict=True))
        return pa.concat_tables([SCHEMA.empty_table(), *(self._singles[name] for name in names)]).combine_chunks()

    def _segment(self, name: str, study: str) -> Segment:
        if name not in self._segments:
            self._segments[name] = Segment(self._store, name, study)
        return self._segments[name]

    def _read(self, name: str, study: str) -> pa.Table:
        return decode(self._store.read_bytes(name), study=study, path=self._store.path_of(name))


def trials_folder(study: str) -> str:
    """The folder that holds a study's trial files."""
    return f"trials/study={study}"


def retry_on_compaction(attempt: Callable[[], _T]) -> _T:
    """What `attempt` gives, tried again while a compaction takes files away under it."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return attempt()
        except MissingFile:
            continue
    return attempt()
