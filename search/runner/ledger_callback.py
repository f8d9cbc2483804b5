"""Keeps what Ray Tune reports: a row for each trial that ended, at once. What else is told, a subclass says."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Container, Mapping
from typing import Any

from ray.tune import Callback, Stopper

from layers import OvertoneError
from results.ledger.ledger import Ledger
from results.schema import TrialRow, TrialStatus
from search.runner.progress import HEARTBEAT_S, RunProgress
from search.runner.trainable import checkpoint_name
from search.study.record import failed_row, finished_row, pruned_row
from spaces import Network

__all__ = ["StopWhenLost", "LedgerCallback"]

_NEWS_S = 0.1
"""The least time between two things said to whoever may ask later."""


class LedgerCallback(Callback):
    """Writes each ended trial at once. What cannot be written stops the run (`lost`); finished rows stay."""

    def __init__(
        self,
        ledger: Ledger,
        study: str,
        network: Network,
        *,
        wanted: int,
        ended: Mapping[str, int],
        stopped: Container[str] = (),
        begun_again: Container[str] = (),
    ) -> None:
        """`ended` are trials in the ledger by their status.

        Of Ray Tune's ids `stopped` are those of trials that were to be stopped, and `begun_again` those of trials whose
        worker died and that are suggested again.
        """
        self.lost: OvertoneError | None = None
        self.ledger, self.study = ledger, study
        self._network, self._stopped, self._begun_again = network, stopped, begun_again
        self._wanted, self._ended = wanted, Counter(ended)
        self._before = self._ended.total()
        self._running: set[str] = set()
        self.unfinished: dict[str, dict[str, Any]] = {}
        """Suggestions that were begun and have left no row, by the ids of their trials in the ledger."""
        self._began, self._beat = time.monotonic(), 0.0
        self._changed = False

    def __getstate__(self) -> dict[str, Any]:
        """Nothing goes into Ray Tune's own snapshot of the experiment, which is never read: the ledger is the truth."""
        return {}

    @abstractmethod
    def write(self, row: TrialRow) -> None:
        """Make a row last; of a finished trial maybe the packed model too, which it left under `checkpoint_name`."""

    @abstractmethod
    def tell(self, row: TrialRow | None) -> None:
        """Say where the run stands: of a trial that ended just now, its row; else to whoever may ask later."""

    def run_progress(self) -> RunProgress:
        """Where the run stands."""
        done = self._ended.total()
        here, left = done - self._before, self._wanted - done
        return RunProgress(
            wanted=self._wanted,
            done=done,
            failed=self._ended[TrialStatus.FAILED],
            pruned=self._ended[TrialStatus.PRUNED],
            running=len(self._running),
            seconds_left=(time.monotonic() - self._began) / here * left if here else None,
        )

    def keep(self, row: TrialRow) -> None:
        """Make the row of an ended trial last, and forget what was there to go on with it."""
        self.guarded(lambda: self.write(row))
        if self.lost is None:
            self._ended[row.status] += 1
            if self.unfinished.pop(row.trial, None) is not None:
                self.guarded(lambda: self.ledger.store.delete(checkpoint_name(self.study, row.trial)))
            self._changed = True
            self.guarded(lambda: self.tell(row))

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """One more is running."""
        self._running.add(trial.trial_id)
        self.unfinished[trial.config["trial"]] = trial.config
        self._changed = True

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Say what has changed, and now and then that the run is alive."""
        if self.lost is None and time.monotonic() - self._beat > (_NEWS_S if self._changed else HEARTBEAT_S):
            self._beat, self._changed = time.monotonic(), False
            self.guarded(lambda: self.tell(None))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Keep a trial that ended or was stopped early; one that was interrupted leaves nothing, and goes on later."""
        report = trial.last_result or {}
        self._running.discard(trial.trial_id)
        if report.get("status") == "failed":
            self.keep(failed_row(self.study, trial.config, report, report["error"], self._network))
        elif trial.trial_id in self._stopped:
            self.keep(pruned_row(self.study, trial.config, report))
        elif report.get("status") == "finished":
            self.keep(finished_row(self.study, trial.config, report, report["model_sha256"]))
        elif report.get("status") == "lost":
            self.lost = self.lost or OvertoneError(report["error"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Keep a trial whose worker died once too often."""
        self._running.discard(trial.trial_id)
        if trial.trial_id in self._begun_again:
            return
        reason = str(trial.get_error() or "the worker died").strip().splitlines()[-1]
        self.keep(failed_row(self.study, trial.config, trial.last_result or {}, reason, self._network))

    def guarded(self, action: Callable[[], object]) -> None:
        """Let no error escape into Ray Tune, which would blame the trial for it."""
        try:
            action()
        except OvertoneError as error:
            self.lost = self.lost or error


class StopWhenLost(Stopper):
    """Stops all trials once the keeper cannot write any more."""

    def __init__(self, callback: LedgerCallback) -> None:
        self._callback = callback

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never stops a single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether to stop."""
        return self._callback.lost is not None
