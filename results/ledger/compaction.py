"""Compaction: many small files of a study become few segments, while others append and read.

A crash may follow any of the steps:
1. The rows of some small files go into one new segment, whose metadata names them; it is durable, whole or absent.
   From here on the named files no longer count, deleted or not.
2. The named files are deleted; the next compaction first deletes those that a crash left.

Two compactions at once may both write the same rows; readers still see each trial once, and the next compaction
merges them. A file that is not a ledger's stops a compaction before it writes anything.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa

from results.ledger.segments import Segment, encode_segment, segment_name
from results.ledger.snapshot import Snapshot, TrialFiles
from results.ledger.store import Store
from results.objectives import Objective
from results.schema import SCHEMA

__all__ = ["Compaction", "compact"]

_FULL_ROWS = 262_144
_MOST_FILES = 16_384


@dataclass(frozen=True, kw_only=True)
class Compaction:
    """The changes that a compaction made to a study's files."""

    files_before: int
    files_after: int
    segments_written: int
    rows_written: int
    files_deleted: int

    def to_json(self) -> dict[str, int]:
        """Return plain numbers by name."""
        return asdict(self)


def compact(store: Store, files: TrialFiles, objectives: Sequence[Objective]) -> Compaction:
    """Merge small files until only segments are left that are full, or too unequal in size to be worth merging."""
    snapshot = files.snapshot()
    before = len(snapshot.names) + len(snapshot.replaced)
    written = 0
    rows = 0
    deleted = _delete(store, snapshot.replaced)
    while small := _mergeable(snapshot):
        table = _rows(files, small)
        store.write_bytes(f"{files.folder}/{segment_name()}", encode_segment(table, objectives, sorted(small.names)))
        written += 1
        rows += table.num_rows
        deleted += _delete(store, sorted(small.names))
        snapshot = files.snapshot()
    return Compaction(
        files_before=before,
        files_after=len(snapshot.names),
        segments_written=written,
        rows_written=rows,
        files_deleted=deleted,
    )


def _mergeable(snapshot: Snapshot) -> Snapshot | None:
    """Return the smallest files, enough for a full segment; None if fewer than two are worth merging.

    A segment takes part if it has at most twice as many rows as the smaller files together: so the number of times that
    a row is copied grows with the logarithm of the study's size, not with the number of compactions.
    """
    row_files = snapshot.row_files[:_MOST_FILES]
    rows = len(row_files)
    segments: list[Segment] = []
    for segment in sorted(snapshot.segments, key=lambda s: (s.num_rows, s.name)):
        if rows >= _FULL_ROWS or segment.num_rows > _FULL_ROWS // 2 or (rows and segment.num_rows > 2 * rows):
            break
        segments.append(segment)
        rows += segment.num_rows
    if len(row_files) + len(segments) < 2:
        return None
    return Snapshot(row_files=row_files, segments=tuple(segments))


def _rows(files: TrialFiles, snapshot: Snapshot) -> pa.Table:
    def pieces() -> Iterator[pa.Table]:
        for source in files.sources(snapshot):
            yield from source.chunks(SCHEMA.names)

    return pa.concat_tables(pieces())


def _delete(store: Store, names: Sequence[str]) -> int:
    for name in names:
        store.delete(name)
    return len(names)
