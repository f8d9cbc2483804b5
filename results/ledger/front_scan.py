"""The front of a study over all its files, and the same brought up to date when files are added.

Over all files: each chunk of rows is compared with the front so far, on the objectives' columns alone, and the whole
rows of the members are read last. A superseded row (its trial was retried) matters only where it is in the front:
if the front of all finished rows holds none, it dominates every other finished row, and so it is the front of the rows
that count. Where it does hold one, all trial ids are compared and the front is computed among the rows that count.

Bringing up to date compares the new rows with the stored front. Wherever a new row may supersede one that was seen, or
the other way round, it gives up, and the front is computed over all files.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from results.ledger.dedup import KEYS, deduplicated_indices
from results.ledger.snapshot import Source, TableSource
from results.objectives import Objective, losses
from results.pareto.dominance import nondominated, usable
from results.pareto.front import front
from results.schema import SCHEMA, TrialStatus

__all__ = ["Standing", "advanced", "computed"]

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A study's front and what it was computed from."""

    members: pa.Table
    files: frozenset[str]
    """The files that counted."""
    latest: int
    """No row in them has a later `finished_at` (microseconds)."""

    @classmethod
    def loaded(cls, data: bytes, members: pa.Table, objectives: Sequence[Objective]) -> "Standing | None":
        """The standing that a front's file holds; None where it was computed for other objectives or says nothing."""
        said = (pq.read_metadata(pa.BufferReader(data)).metadata or {}).get(b"overtone")
        known = json.loads(said) if said else {}
        if known.get("objectives") != [objective.name for objective in objectives]:
            return None
        return cls(members=members, files=frozenset(known["files"]), latest=known["latest"])

    def metadata(self, objectives: Sequence[Objective]) -> dict[str, str]:
        """What is kept beside the members, so that the next process goes on from here."""
        names = [objective.name for objective in objectives]
        return {"overtone": json.dumps({"objectives": names, "latest": self.latest, "files": sorted(self.files)})}


def computed(sources: Sequence[Source], files: frozenset[str], objectives: Sequence[Objective]) -> Standing:
    """The front over all rows of all files."""
    at = _scan(sources, objectives, None)
    members = _rows(sources, at)
    if _superseded(members, sources):
        at = _scan(sources, objectives, _counting(sources))
        members = _rows(sources, at)
    return Standing(members=front(members, objectives), files=files, latest=_latest(sources))


def advanced(
    standing: Standing,
    new: Sequence[Source],
    everything: Callable[[], Sequence[Source]],
    files: frozenset[str],
    objectives: Sequence[Objective],
) -> Standing | None:
    """The front after the rows of `new`; None where it has to be computed over all files.

    `everything` gives all sources that count now, those of the new files included; it is rarely called.
    """
    columns = list(dict.fromkeys([*KEYS, *(objective.name for objective in objectives)]))
    rows = pa.concat_tables([SCHEMA.empty_table().select(columns), *(c for s in new for c in s.chunks(columns))])
    finished = rows.filter(pc.equal(rows.column("status"), TrialStatus.FINISHED.value))
    if not finished.num_rows:
        return replace(standing, files=files, latest=max(standing.latest, _latest(new)))
    ids = finished.column("trial")
    if pc.count_distinct(ids).as_py() < len(ids) or pc.any(pc.is_in(ids, standing.members.column("trial"))).as_py():
        return None
    at = _scan([TableSource(standing.members), *new], objectives, None)
    entering = _rows(new, (at[0][at[0] > 0] - 1, at[1][at[0] > 0]))
    if _rivalled(entering, standing.latest, everything):
        return None
    stay = TableSource(standing.members).take(at[1][at[0] == 0])
    members = front(pa.concat_tables([stay, entering]), objectives)
    return Standing(members=members, files=files, latest=max(standing.latest, _latest(new)))


def _latest(sources: Sequence[Source]) -> int:
    return max((source.latest for source in sources), default=0)


def _scan(
    sources: Sequence[Source], objectives: Sequence[Objective], counting: Sequence[npt.NDArray[np.bool_]] | None
) -> tuple[_Ints, _Ints]:
    """Where the members are: source and row, each of shape (members,)."""
    columns = list(dict.fromkeys(["status", "repeat_of", "val_top1", *(objective.name for objective in objectives)]))
    best, at = np.empty((0, len(objectives))), np.empty((2, 0), dtype=np.int64)
    for index, source in enumerate(sources):
        start = 0
        chunks = source.chunks(columns)
        for chunk in chunks if isinstance(source, TableSource) else _ahead(chunks):
            mask = usable(chunk, objectives) & pc.is_null(chunk.column("repeat_of")).to_numpy()
            if counting is not None:
                mask &= counting[index][start : start + chunk.num_rows]
            rows, points = np.flatnonzero(mask), losses(chunk, objectives)[mask]
            kept = nondominated(points, best)
            rows, points = rows[kept] + start, points[kept]
            still = nondominated(best, points) if len(points) else np.ones(len(best), dtype=bool)
            best = np.vstack([best[still], points])
            at = np.hstack([at[:, still], np.stack([np.full_like(rows, index), rows])])
            start += chunk.num_rows
    return at[0], at[1]


def _ahead(chunks: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same, the next one being read while one is looked at."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        coming = reader.submit(next, chunks, None)
        while (chunk := coming.result()) is not None:
            coming = reader.submit(next, chunks, None)
            yield chunk


def _rows(sources: Sequence[Source], at: tuple[_Ints, _Ints]) -> pa.Table:
    """Whole rows by source and position."""
    pieces = [sources[index].take(np.sort(at[1][at[0] == index])) for index in np.unique(at[0])]
    return pa.concat_tables([SCHEMA.empty_table(), *pieces])


def _superseded(members: pa.Table, sources: Sequence[Source]) -> bool:
    """Whether a trial of the front has another finished row; a member found twice counts too."""
    ids = members.column("trial").combine_chunks()
    if len(ids.unique()) < len(ids):
        return True
    if not len(ids) or _occurrences(ids, sources, finished=False) == len(ids):
        return False
    return _occurrences(ids, sources, finished=True) != len(ids)


def _occurrences(ids: pa.Array, sources: Sequence[Source], *, finished: bool) -> int:
    columns = ["trial", "status"] if finished else ["trial"]
    count = 0
    for source in sources:
        for chunk in source.chunks(columns):
            found = pc.is_in(chunk.column("trial"), ids)
            if finished:
                found = pc.and_(found, pc.equal(chunk.column("status"), TrialStatus.FINISHED.value))
            count += pc.sum(found).as_py() or 0
    return count


def _counting(sources: Sequence[Source]) -> list[npt.NDArray[np.bool_]]:
    """Which rows of each source count, by comparing all trial ids."""
    keys = [pa.concat_tables([SCHEMA.empty_table().select(KEYS), *source.chunks(KEYS)]) for source in sources]
    mask = np.zeros(sum(source.num_rows for source in sources), dtype=bool)
    mask[deduplicated_indices(pa.concat_tables(keys))] = True
    return np.split(mask, np.cumsum([source.num_rows for source in sources])[:-1])


def _rivalled(entering: pa.Table, latest: int, everything: Callable[[], Sequence[Source]]) -> bool:
    """Whether a trial that enters the front has another row that ended as late as the one that enters.

    An earlier one has lost already, and is no member of the front, so that its leaving changes nothing.
    """
    ended = entering.column("finished_at").cast(pa.int64())
    late = entering.filter(pc.less_equal(ended, latest))
    if not late.num_rows:
        return False
    since = pc.min(late.column("finished_at").cast(pa.int64())).as_py()
    ids = late.column("trial").combine_chunks()
    count = 0
    for source in everything():
        for chunk in source.chunks(["trial"], since=since):
            count += pc.sum(pc.is_in(chunk.column("trial"), ids)).as_py() or 0
    return count > late.num_rows
