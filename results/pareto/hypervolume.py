"""Hypervolume: how much of the objectives' space a set of trials dominates, and how it grows trial by trial.

It is measured in units of a stated reference point (`reference_point`): score lost and costs, each divided by its value
at the reference, so that 0 is nothing gained, 1 is a full score for free, and what is worse than the reference adds
nothing.
"""

from collections.abc import Mapping, Sequence

import moocore
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from layers.errors import UsageError
from results.objectives import Objective
from results.pareto.dominance import usable
from results.pareto.losses import losses

__all__ = ["hypervolume", "hypervolume_after_each", "hypervolume_trace", "reference_point"]

_Floats = npt.NDArray[np.float64]


def reference_point(
    objectives: Sequence[Objective], uncompressed: Mapping[str, float | None], table: pa.Table
) -> dict[str, float]:
    """Return, by objective's name, the point against which hypervolume counts.

    It has the score 0, and each cost as the uncompressed network has it. A cost that `uncompressed` does not name (a
    latency that was not measured) counts from the worst finished trial in the table, so its figures move when a worse
    trial arrives; it is NaN while there is none.
    """
    return {objective.name: _reference(objective, uncompressed, table) for objective in objectives}


def hypervolume(table: pa.Table, objectives: Sequence[Objective], reference: Mapping[str, float]) -> float:
    """Return the dominated share, in [0, 1], of the box between the reference and the ideal (score 1, costs 0)."""
    points = _scaled(_usable(table, objectives), objectives, reference)
    return _volume(points)


def hypervolume_after_each(table: pa.Table, objectives: Sequence[Objective], reference: Mapping[str, float]) -> _Floats:
    """Return the hypervolume after each finished trial, in the order in which they finished: shape (trials,)."""
    finished = _usable(table, objectives).sort_by([("finished_at", "ascending"), ("number", "ascending")])
    members = np.empty((0, len(objectives)))
    history = np.empty(finished.num_rows)
    for index, point in enumerate(_scaled(finished, objectives, reference)):
        if not (members <= point).all(axis=1).any():
            members = np.vstack([members[~(point <= members).all(axis=1)], point])
            history[index] = _volume(members)
        else:
            history[index] = history[index - 1]
    return history


def hypervolume_trace(table: pa.Table, objectives: Sequence[Objective], reference: Mapping[str, float]) -> pa.Table:
    """Return one row for each trial with a result, in the order in which they finished.

    Columns: `trial`; `finished_at`; `seconds`, the `total_s` of all trials up to here, failed and pruned ones included
    (the time between its start and its end for a trial without `total_s`); `hypervolume` after it, in [0, 1].
    """
    ordered = table.sort_by([("finished_at", "ascending"), ("number", "ascending")])
    seconds = np.cumsum(_seconds(ordered))
    mask = usable(ordered, objectives)
    finished = ordered.filter(pa.array(mask))
    return pa.table(
        {
            "trial": finished.column("trial"),
            "finished_at": finished.column("finished_at"),
            "seconds": seconds[mask],
            "hypervolume": hypervolume_after_each(finished, objectives, reference),
        }
    )


def _usable(table: pa.Table, objectives: Sequence[Objective]) -> pa.Table:
    return table.filter(pa.array(usable(table, objectives)))


def _reference(objective: Objective, uncompressed: Mapping[str, float | None], table: pa.Table) -> float:
    if objective.direction == "max":
        return 0.0
    value = uncompressed.get(objective.name)
    if value is None:
        costs = losses(_usable(table, [objective]), [objective])
        return float(costs.max()) if len(costs) else float("nan")
    if not value > 0:
        raise UsageError(f"the uncompressed network's {objective.name} (={value}) must be above 0")
    return float(value)


def _scaled(table: pa.Table, objectives: Sequence[Objective], reference: Mapping[str, float]) -> _Floats:
    """Return the objectives, lower is better, with 0 the ideal and 1 the reference: shape (rows, objectives)."""
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


def _seconds(table: pa.Table) -> npt.NDArray[np.float64]:
    started, ended = (table.column(name).cast(pa.int64()) for name in ("started_at", "finished_at"))
    between = pc.divide(pc.subtract(ended, started).cast(pa.float64()), 1e6)
    seconds = pc.coalesce(table.column("total_s"), between).fill_null(0.0)
    return np.asarray(seconds.to_numpy(), dtype=np.float64)
