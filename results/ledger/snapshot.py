"""The trial files of a study at one moment: row files, segments, and which of them still count.

Files never change once they have a name, so each is read once and remembered. A file that a segment names as replaced
no longer counts, even before it is deleted. One that vanishes between listing and reading was replaced: list again.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from results.ledger.codec import decode
from results.ledger.segments import Segment, is_segment
from results.ledger.store import MissingFile, Store
from results.schema import SCHEMA

__all__ = ["Snapshot", "Source", "TableSource", "TrialFiles", "retry_on_compaction"]

_T = TypeVar("_T")
_ATTEMPTS = 5
_READERS = 8


class Source(Protocol):
    """Rows of one study, in memory or in a segment."""

    num_rows: int

    def chunks(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the named columns of the rows, piece by piece."""

    def take(self, rows: npt.NDArray[np.int64]) -> pa.Table:
        """Return whole rows by their ascending positions."""


class TableSource:
    """Rows in memory as a source."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.num_rows = table.num_rows

    def chunks(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the named columns of all rows at once."""
        yield self._table.select(list(columns))

    def take(self, rows: npt.NDArray[np.int64]) -> pa.Table:
        """Return whole rows by their positions."""
        return self._table.take(rows)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The files that count, at the moment of listing."""

    row_files: tuple[str, ...]
    segments: tuple[Segment, ...]
    replaced: tuple[str, ...] = ()
    """Files that a segment has replaced and that are not deleted yet."""

    @property
    def names(self) -> frozenset[str]:
        """The names of the files that count."""
        return frozenset(self.row_files) | {segment.name for segment in self.segments}

    def added_since(self, seen: frozenset[str]) -> "Snapshot | None":
        """Return the files with rows that are not in the files `seen`.

        None if a seen file has gone and no new segment replaces it: then all files must be read again.
        """
        later = [segment for segment in self.segments if segment.name not in seen]
        if seen - self.names - frozenset[str]().union(*(segment.replaces for segment in later)):
            return None
        return Snapshot(
            row_files=tuple(name for name in self.row_files if name not in seen),
            segments=tuple(segment for segment in later if not segment.replaces or not segment.replaces <= seen),
        )


class TrialFiles:
    """The trial files of one study, each file read once."""

    def __init__(self, store: Store, study: str) -> None:
        self._store = store
        self._study = study
        self.folder = f"trials/study={study}"
        self._row_files: dict[str, pa.Table] = {}
        self._segments: dict[str, Segment] = {}

    def remember(self, name: str, rows: pa.Table) -> None:
        """Remember the rows of a row file that was just written, so that it need not be read."""
        self._row_files[name] = rows

    def snapshot(self) -> Snapshot:
        """List the files that are there now; read the footers of new segments."""
        names = self._store.list(self.folder, ".parquet")
        for cache in (self._row_files, self._segments):
            for name in cache.keys() - set(names):
                del cache[name]
        segments = [self._segment(name) for name in names if is_segment(name)]
        replaced = frozenset[str]().union(*(segment.replaces for segment in segments))
        return Snapshot(
            row_files=tuple(name for name in names if not is_segment(name) and name not in replaced),
            segments=tuple(segment for segment in segments if segment.name not in replaced),
            replaced=tuple(name for name in names if name in replaced),
        )

    def sources(self, snapshot: Snapshot) -> list[Source]:
        """Return the rows of the files that count: all row files as one source, then each segment."""
        row_files = [TableSource(self.row_files(snapshot.row_files))] if snapshot.row_files else []
        return [*row_files, *snapshot.segments]

    def row_files(self, names: Sequence[str]) -> pa.Table:
        """Return the rows of row files in the order of `names`; raise `OvertoneError` naming one that is unreadable."""
        unread = [name for name in names if name not in self._row_files]
        if unread:
            with ThreadPoolExecutor(max_workers=_READERS) as pool:
                self._row_files.update(zip(unread, pool.map(self._read, unread), strict=True))
        return pa.concat_tables([SCHEMA.empty_table(), *(self._row_files[name] for name in names)]).combine_chunks()

    def _segment(self, name: str) -> Segment:
        if name not in self._segments:
            self._segments[name] = Segment(self._store, name, self._study)
        return self._segments[name]

    def _read(self, name: str) -> pa.Table:
        return decode(self._store.read_bytes(name), study=self._study, path=self._store.path_of(name))


def retry_on_compaction(attempt: Callable[[], _T]) -> _T:
    """Return what `attempt` returns; try again while a compaction deletes the files that it is reading."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return attempt()
        except MissingFile:
            continue
    return attempt()
