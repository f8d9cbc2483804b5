"""The trade-off front of a table of trials, its hypervolume, and the two points people ask for: best and knee.

Only finished trials with a finite value in every objective take part. A trial belongs to the front when no other trial
is at least as good in all objectives and better in one; trials of equal values all stay.

The hypervolume is measured in units of a stated reference point (`reference_point`): accuracy lost and costs, each
divided by its value there, so that 0 is nothing gained, 1 is full accuracy for free, and what is worse than the
reference adds nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import moocore
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from layers.errors import OvertoneError, UsageError
from results.objectives import Objective, losses
from results.pareto.dominance import front_mask, ranks, usable

__all__ = ["best", "front", "hypervolume", "hypervolume_after_each", "knee", "ranks", "reference_point"]

_Floats = npt.NDArray[np.float64]
_ORDER = [("size_bytes", "ascending"), ("val_top1", "descending"), ("trial", "ascending")]


def front(table: pa.Table, objectives: Sequence[Objective], limits: Mapping[str, float] | None = None) -> pa.Table:
    """The rows that no other row dominates, smallest first (ties: more accurate, then by trial id).

    With `limits` (a column and the worst value allowed), the front of the rows that keep them all.
    """
    return table.filter(pa.array(front_mask(table, objectives, limits))).sort_by(_ORDER)


def reference_point(
    objectives: Sequence[Objective], uncompressed: Mapping[str, float | None], table: pa.Table
) -> dict[str, float]:
    """The point against which hypervolume counts: accuracy 0, and each cost as the uncompressed network has it.

    A cost that `uncompressed` does not name (a latency that was not measured) counts from the worst finished trial in
    the table, so its figures move when a worse trial arrives; it is NaN while there is none.
    """
    return {objective.name: _reference(objective, uncompressed, table) for objective in objectives}


def hypervolume(table: pa.Table, objectives: Sequence[Objective], reference: Mapping[str, float]) -> float:
    """The share, in [0, 1], of the box between the reference and the ideal (accuracy 1, costs 0) that is dominated."""
    points = _scaled(_usable(table, objectives), objectives, reference)
    return _volume(points)


def hypervolume_after_each(table: pa.Table, objectives: Sequence[Objective], reference: Mapping[str, float]) -> _Floats:
    """The hypervolume after each finished trial, in the order in which they finished: shape (trials,)."""
    usable = _usable(table, objectives).sort_by([("finished_at", "ascending"), ("number", "ascending")])
    kept = np.empty((0, len(objectives)))
    history = np.empty(usable.num_rows)
    for index, point in enumerate(_scaled(usable, objectives, reference)):
        if not (kept <= point).all(axis=1).any():
            kept = np.vstack([kept[~(point <= kept).all(axis=1)], point])
            history[index] = _volume(kept)
        else:
            history[index] = history[index - 1]
    return history


def best(table: pa.Table) -> dict[str, Any]:
    """The finished row of highest val_top1; among equals the smallest."""
    usable = _usable(table, ())
    if not usable.num_rows:
        raise OvertoneError("no finished trial is left to pick from")
    order = [("val_top1", "descending"), ("size_bytes", "ascending"), ("trial", "ascending")]
    return _first(usable.sort_by(order))


def knee(table: pa.Table, objectives: Sequence[Objective]) -> dict[str, Any]:
    """The row of the front that lies farthest above the line between the front's two extremes.

    Seen in two objectives: val_top1 against the cost, or against size_bytes where there are several costs (the first
    cost where size_bytes is none of them); the front is projected there first. Both are scaled to [0, 1] between the
    extremes, the cost on a log axis. Where no point lies above the line, the cheapest extreme is the knee.
    """
    pair = _knee_pair(objectives)
    shown = front(front(table, objectives), pair)
    if not shown.num_rows:
        raise OvertoneError("no finished trial is left to pick from")
    accuracy, cost = losses(shown, pair).T
    height = _to_unit(-accuracy) - _to_unit(np.log(np.maximum(cost, np.finfo(np.float64).tiny)))
    cheapest = np.lexsort((cost, -height.round(12)))[0]
    return _first(shown.slice(int(cheapest)))


def _knee_pair(objectives: Sequence[Objective]) -> tuple[Objective, Objective]:
    accuracy = next(objective for objective in objectives if objective.direction == "max")
    costs = [objective for objective in objectives if objective.direction == "min"]
    return accuracy, next((cost for cost in costs if cost.name == "size_bytes"), costs[0])


def _usable(table: pa.Table, objectives: Sequence[Objective]) -> pa.Table:
    return table.filter(pa.array(usable(table, objectives)))


def _reference(objective: Objective, uncompressed: Mapping[str, float | None], table: pa.Table) -> float:
    if objective.direction == "max":
        return 0.0
    given = uncompressed.get(objective.name)
    if given is None:
        seen = losses(_usable(table, [objective]), [objective])
        return float(seen.max()) if len(seen) else float("nan")
    if not given > 0:
        raise UsageError(f"the uncompressed network's {objective.name} (={given}) must be above 0")
    return float(given)


def _scaled(table: pa.Table, objectives: Sequence[Objective], reference: Mapping[str, float]) -> _Floats:
    """Lower is better, 0 the ideal and 1 the reference: shape (rows, objectives)."""
    columns = losses(table, objectives)
    for index, objective in enumerate(objectives):
        worst = reference[objective.name]
        if objective.direction == "max":
            columns[:, index] = (1.0 + columns[:, index]) / (1.0 - worst)
        else:
            columns[:, index] /= worst
    return columns


def _volume(points: _Floats) -> float:
    inside = points[(points < 1.0).all(axis=1)]
    return float(moocore.hypervolume(inside, ref=np.ones(points.shape[1]))) if len(inside) else 0.0


def _to_unit(values: _Floats) -> _Floats:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _first(table: pa.Table) -> dict[str, Any]:
    return dict(table.slice(0, 1).to_pylist()[0])
