"""Which trials dominate which: exact non-dominated sets and ranks of a table, in lower-is-better numbers.

Only finished trials with finite values and within the given limits take part. One trial dominates another when it is
at least as good in all objectives and better in one; trials of equal values do not dominate each other.
"""

from collections.abc import Mapping, Sequence

import moocore
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from layers.errors import UsageError
from results.objectives import COSTS, SCORE, Objective
from results.pareto.losses import losses
from results.schema import TrialStatus

__all__ = ["front_mask", "nondominated", "ranks", "usable"]

_Floats = npt.NDArray[np.float64]
_Mask = npt.NDArray[np.bool_]
_CELLS = {2: 1024, 3: 64, 4: 24}
_MANY = 16_384


def usable(table: pa.Table, objectives: Sequence[Objective], limits: Mapping[str, float] | None = None) -> _Mask:
    """Return which rows take part: finished, score and all objectives finite, every limit met; shape (rows,).

    A limit is the worst value allowed: a score at least, a cost at most. Raises `UsageError` for one that is no
    objective.
    """
    finished = pc.equal(table.column("status"), TrialStatus.FINISHED.value).fill_null(False)
    mask: _Mask = finished.to_numpy() & np.isfinite(losses(table, [SCORE, *objectives])).all(axis=1)
    by_name = {SCORE.name: SCORE, **COSTS, **{objective.name: objective for objective in objectives}}
    for name, worst in (limits or {}).items():
        if name not in by_name:
            raise UsageError(f"limit (={name!r}) must be on one of {', '.join(by_name)}")
        sign = -1.0 if by_name[name].direction == "max" else 1.0
        mask &= losses(table, [by_name[name]])[:, 0] <= sign * worst
    return mask


def front_mask(table: pa.Table, objectives: Sequence[Objective], limits: Mapping[str, float] | None = None) -> _Mask:
    """Return which rows no other row dominates; shape (rows,)."""
    mask = usable(table, objectives, limits)
    points = losses(table, objectives)[mask]
    mask[mask] = nondominated(points)
    return mask


def ranks(
    table: pa.Table, objectives: Sequence[Objective], limits: Mapping[str, float] | None = None
) -> npt.NDArray[np.int64]:
    """Return the rank of each row in the table's order: 0 for the front, 1 for the front of the rest, and so on.

    Rows of equal values share a rank; rows that take no part have rank -1. Shape (rows,).
    """
    mask = usable(table, objectives, limits)
    rank = np.full(table.num_rows, -1, dtype=np.int64)
    if mask.any():
        rank[mask] = moocore.pareto_rank(losses(table, objectives)[mask])
    return rank


def nondominated(points: _Floats, beside: _Floats | None = None) -> _Mask:
    """Return which finite points are dominated by no other point and by none of `beside`; equal points all stay.

    Shapes (points, objectives) and (beside, objectives) to (points,). `beside`, ideally a front, first rules out most
    points for one table look-up each, so that a front over millions takes seconds.
    """
    mask = np.ones(len(points), dtype=bool)
    if beside is not None and len(beside):
        mask = ~_plainly_dominated(points, beside) if len(points) > _MANY else mask
        both = np.vstack([beside, points[mask]])
        mask[mask] = moocore.is_nondominated(both, keep_weakly=True)[len(beside) :]
    elif len(points):
        mask = np.asarray(moocore.is_nondominated(points, keep_weakly=True), dtype=bool)
    return mask


def _plainly_dominated(points: _Floats, beside: _Floats) -> _Mask:
    """Return the points in a cell of a grid whose lower corner some of `beside` dominates: never wrong, not exhaustive.

    The grid's edges are quantiles of `beside`, at most a third of a million cells.
    """
    cells = _CELLS.get(points.shape[1], 8)
    edges = [np.unique(np.quantile(column, np.linspace(0, 1, cells), method="lower")) for column in beside.T]
    dominated: _Mask = np.zeros([len(edge) + 1 for edge in edges], dtype=bool)
    # the first cell whose corner is not better than the member; strictly worse in the first objective, so that a point
    # equal to the member is never ruled out
    sides = ["right", *["left"] * (len(edges) - 1)]
    corner = [np.searchsorted(e, c, side) + 1 for e, c, side in zip(edges, beside.T, sides, strict=True)]  # type: ignore[call-overload]
    inside = np.all([c < size for c, size in zip(corner, dominated.shape, strict=True)], axis=0)
    dominated[tuple(c[inside] for c in corner)] = True
    for axis in range(dominated.ndim):
        np.logical_or.accumulate(dominated, axis=axis, out=dominated)
    cell = tuple(np.searchsorted(e, c, "right") for e, c in zip(edges, points.T, strict=True))
    mask: _Mask = dominated[cell]
    return mask
