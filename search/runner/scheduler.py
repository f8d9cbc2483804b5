"""Ray Tune's trial scheduler: first come, first served; it stops a trial that the searcher gives up."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search.optimize.searcher import FrontSearcher

__all__ = ["FrontStopper"]


class FrontStopper(FIFOScheduler):
    """Stops a trial once it cannot enter the front."""

    def __init__(self, searcher: FrontSearcher) -> None:
        super().__init__()
        self._searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Return whether to go on, from a report of `TrialActor`."""
        running = result.get("status") == "running"
        return TrialScheduler.STOP if running and self._searcher.should_stop(trial.trial_id, result) else self.CONTINUE
