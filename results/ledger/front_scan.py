"""The exact front of a study over all its files, without reading them whole.

Each chunk of rows is compared with the front so far, on the objectives' columns alone; the whole rows of the members
are read last. A superseded row (its trial was retried) matters only if it is in the front: if the front of all finished
rows holds none, it dominates every other finished row, and so it is the front of the rows that count. If it does hold
one, all trial ids are compared and the front is computed among the rows that count.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from results.ledger.dedup import KEYS, deduplicated_indices
from results.ledger.snapshot import Source, TableSource
from results.objectives import SCORE, Objective
from results.pareto.dominance import nondominated, usable
from results.pareto.front import front
from results.pareto.losses import losses
from results.schema import SCHEMA, TrialStatus

__all__ = ["compute_front"]

_Ints = npt.NDArray[np.int64]
_Mask = npt.NDArray[np.bool_]


def compute_front(sources: Sequence[Source], objectives: Sequence[Objective]) -> pa.Table:
    """Return the front over all rows of all sources: whole rows, smallest first."""
    members = _rows(sources, *_scan(sources, objectives, None))
    if _any_superseded(members, sources):
        members = _rows(sources, *_scan(sources, objectives, _counting_masks(sources)))
    return front(members, objectives)


def _scan(
    sources: Sequence[Source], objectives: Sequence[Objective], masks: Sequence[_Mask] | None
) -> tuple[_Ints, _Ints]:
    """Return the members' sources and their rows in them, each of shape (members,).

    `masks` names the rows of each source that count; None for all.
    """
    objective_columns = [objective.column for objective in objectives]
    columns = list(dict.fromkeys(["status", "repeat_of", SCORE.column, *objective_columns]))
    best = np.empty((0, len(objectives)))
    at = np.empty((2, 0), dtype=np.int64)
    for index, source in enumerate(sources):
        start = 0
        chunks = source.chunks(columns)
        for chunk in chunks if isinstance(source, TableSource) else _read_ahead(chunks):
            mask = usable(chunk, objectives) & pc.is_null(chunk.column("repeat_of")).to_numpy()
            if masks is not None:
                mask &= masks[index][start : start + chunk.num_rows]
            rows, points = np.flatnonzero(mask), losses(chunk, objectives)[mask]
            entering = nondominated(points, best)
            rows, points = rows[entering] + start, points[entering]
            staying = nondominated(best, points) if len(points) else np.ones(len(best), dtype=bool)
            best = np.vstack([best[staying], points])
            at = np.hstack([at[:, staying], np.stack([np.full_like(rows, index), rows])])
            start += chunk.num_rows
    return at[0], at[1]


def _read_ahead(chunks: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield the same chunks, each read while the one before it is worked on."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        coming = reader.submit(next, chunks, None)
        while (chunk := coming.result()) is not None:
            coming = reader.submit(next, chunks, None)
            yield chunk


def _rows(sources: Sequence[Source], source_indices: _Ints, rows: _Ints) -> pa.Table:
    """Return whole rows by source and position."""
    pieces = [sources[index].take(np.sort(rows[source_indices == index])) for index in np.unique(source_indices)]
    return pa.concat_tables([SCHEMA.empty_table(), *pieces])


def _any_superseded(members: pa.Table, sources: Sequence[Source]) -> bool:
    """Return whether a trial of the front has another finished row, a second member included."""
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
            match = pc.is_in(chunk.column("trial"), ids)
            if finished:
                match = pc.and_(match, pc.equal(chunk.column("status"), TrialStatus.FINISHED.value))
            count += pc.sum(match).as_py() or 0
    return count


def _counting_masks(sources: Sequence[Source]) -> list[_Mask]:
    """Return which rows of each source count, by comparing all trial ids."""
    keys = [pa.concat_tables([SCHEMA.empty_table().select(KEYS), *source.chunks(KEYS)]) for source in sources]
    mask = np.zeros(sum(source.num_rows for source in sources), dtype=bool)
    mask[deduplicated_indices(pa.concat_tables(keys))] = True
    return np.split(mask, np.cumsum([source.num_rows for source in sources])[:-1])
