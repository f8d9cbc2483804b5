"""What a search found for what it spent: hypervolume after each trial, beside the time that had gone by then."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from results.objectives import losses
from results.schema import TrialStatus
from results.summary import Summary

__all__ = ["spent"]

_ORDER = [("finished_at", "ascending"), ("number", "ascending")]


def spent(summary: Summary) -> dict[str, list[Any]]:
    """Columns `hypervolume`, `trials`, `busy_s` and `elapsed_s`, one entry where the hypervolume changes, and the last.

    `trials` counts finished trials. `busy_s` is what all trials up to then took, failed ones too, on all workers
    together; `elapsed_s` runs from the start of the first trial, pauses of the study included.
    """
    trials = summary.trials.sort_by(_ORDER)
    counted = _counted(summary, trials)
    busy = np.cumsum(np.nan_to_num(trials.column("total_s").cast(pa.float64()).to_numpy()))[counted]
    ended = trials.column("finished_at").cast(pa.int64()).to_numpy()[counted]
    elapsed = (ended - (pc.min(trials.column("started_at").cast(pa.int64())).as_py() or 0)) / 1e6
    kept = _steps(summary.history)
    return {
        "hypervolume": summary.history[kept].round(6).tolist(),
        "trials": (kept + 1).tolist(),
        "busy_s": busy[kept].round(1).tolist(),
        "elapsed_s": elapsed[kept].round(1).tolist(),
    }


def _counted(summary: Summary, trials: pa.Table) -> Any:
    """Which trials the history has an entry for: finished, with a finite value in every objective."""
    finished = np.asarray(pc.equal(trials.column("status"), TrialStatus.FINISHED.value))
    return finished & np.isfinite(losses(trials, summary.objectives)).all(axis=1)


def _steps(history: Any) -> Any:
    changed = np.flatnonzero(np.diff(history, prepend=-1.0) > 0)
    return np.unique(np.append(changed, len(history) - 1)) if len(history) else changed
