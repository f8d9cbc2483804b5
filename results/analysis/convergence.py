"""How fast a search converges: hypervolume after each trial, beside the time spent by then (anytime performance)."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from results.analysis.summary import Summary

__all__ = ["anytime_hypervolume"]

_Floats = npt.NDArray[np.float64]


def anytime_hypervolume(summary: Summary) -> dict[str, list[Any]]:
    """Return columns `hypervolume`, `trials`, `busy_s` and `elapsed_s`: an entry a change of hypervolume, and the last.

    `trials` counts finished trials. `busy_s` is the time of all trials up to then, failed ones too, on all workers
    together; `elapsed_s` runs from the start of the first trial, pauses of the study included.
    """
    history = summary.history
    volume: _Floats = np.asarray(history.column("hypervolume").to_numpy(), dtype=np.float64)
    started = pc.min(summary.trials.column("started_at").cast(pa.int64())).as_py() or 0
    elapsed = (history.column("finished_at").cast(pa.int64()).to_numpy() - started) / 1e6
    steps = _steps(volume)
    return {
        "hypervolume": volume[steps].round(6).tolist(),
        "trials": (steps + 1).tolist(),
        "busy_s": history.column("seconds").to_numpy()[steps].round(1).tolist(),
        "elapsed_s": elapsed[steps].round(1).tolist(),
    }


def _steps(volume: _Floats) -> npt.NDArray[np.int64]:
    changed = np.flatnonzero(np.diff(volume, prepend=-1.0) > 0)
    return np.unique(np.append(changed, len(volume) - 1)) if len(volume) else changed
