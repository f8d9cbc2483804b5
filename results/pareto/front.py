"""The trade-off front of a table of trials, and the two points that people ask for: best and knee.

Only finished trials with a finite value in every objective take part. A trial belongs to the front when no other trial
is at least as good in all objectives and better in one; trials of equal values all stay.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from layers.errors import OvertoneError
from results.objectives import SCORE, Objective
from results.pareto.dominance import front_mask, usable
from results.pareto.losses import losses
from results.schema import to_records

__all__ = ["best", "front", "knee"]

_Floats = npt.NDArray[np.float64]
_ORDER = [("size_bytes", "ascending"), (SCORE.column, "descending"), ("trial", "ascending")]
_BEST_FIRST = [(SCORE.column, "descending"), ("size_bytes", "ascending"), ("trial", "ascending")]


def front(table: pa.Table, objectives: Sequence[Objective], limits: Mapping[str, float] | None = None) -> pa.Table:
    """Return the rows that no other row dominates, smallest first (ties: by score, highest first, then by trial id).

    With `limits` (an objective's name and the worst value allowed), the front of the rows that meet them all.
    """
    return table.filter(pa.array(front_mask(table, objectives, limits))).sort_by(_ORDER)


def best(table: pa.Table) -> dict[str, Any]:
    """Return the finished row of the highest score; among equals the smallest."""
    finished = table.filter(pa.array(usable(table, ())))
    _check_any(finished)
    return _first(finished.sort_by(_BEST_FIRST))


def knee(table: pa.Table, objectives: Sequence[Objective]) -> dict[str, Any]:
    """Return the row of the front that lies farthest above the line between the front's two extremes.

    Seen in two objectives: the score against the cost. Of several costs that is size_bytes, or the first if size_bytes
    is not among them; the front is projected onto the two first. Both are scaled to [0, 1] between the extremes, the
    cost on a log axis. If no point lies above the line, the cheapest extreme is the knee.
    """
    pair = _knee_pair(objectives)
    members = front(front(table, objectives), pair)
    _check_any(members)
    score, cost = losses(members, pair).T
    height = _to_unit(-score) - _to_unit(np.log(np.maximum(cost, np.finfo(np.float64).tiny)))
    highest = np.lexsort((cost, -height.round(12)))[0]
    return _first(members.slice(int(highest)))


def _knee_pair(objectives: Sequence[Objective]) -> tuple[Objective, Objective]:
    score = next(objective for objective in objectives if objective.direction == "max")
    costs = [objective for objective in objectives if objective.direction == "min"]
    return score, next((cost for cost in costs if cost.name == "size_bytes"), costs[0])


def _check_any(rows: pa.Table) -> None:
    if not rows.num_rows:
        raise OvertoneError("no finished trial is left to pick from")


def _to_unit(values: _Floats) -> _Floats:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _first(table: pa.Table) -> dict[str, Any]:
    return to_records(table.slice(0, 1))[0]
