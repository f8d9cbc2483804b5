"""Hypervolume over time and over cost: what a study had won after how many seconds of work."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from results.objectives import Objective
from results.pareto.dominance import usable
from results.pareto.front import hypervolume_after_each

__all__ = ["hypervolume_trace"]


def hypervolume_trace(table: pa.Table, objectives: Sequence[Objective], reference: Mapping[str, float]) -> pa.Table:
    """One row for each trial with a result, in the order in which they finished.

    Columns: `trial`; `finished_at`; `seconds`, the `total_s` of all trials up to here, failed and pruned ones included
    (where a trial does not say, the time between its start and its end); `hypervolume` after it, in [0, 1].
    """
    ordered = table.sort_by([("finished_at", "ascending"), ("number", "ascending")])
    spent = np.cumsum(_seconds(ordered))
    counts = usable(ordered, objectives)
    finished = ordered.filter(pa.array(counts))
    return pa.table(
        {
            "trial": finished.column("trial"),
            "finished_at": finished.column("finished_at"),
            "seconds": spent[counts],
            "hypervolume": hypervolume_after_each(finished, objectives, reference),
        }
    )


def _seconds(table: pa.Table) -> npt.NDArray[np.float64]:
    started, ended = (table.column(name).cast(pa.int64()) for name in ("started_at", "finished_at"))
    between = pc.divide(pc.subtract(ended, started).cast(pa.float64()), 1e6)
    found = pc.coalesce(table.column("total_s"), between).fill_null(0.0)
    return np.asarray(found.to_numpy(), dtype=np.float64)
