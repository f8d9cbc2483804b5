"""Keeps what Ray Tune reports: a row for each trial that ended, at once. What else is told, a subclass says."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from ray.tune import Callback, Stopper

from layers import OvertoneError
from results.ledger import Ledger
from results.schema import TrialRow, TrialStatus
from search.progress import Tally
from search.record import failed_row, finished_row
from spaces import Network

__all__ = ["StopWhenLost", "TrialKeeper"]

_HEARTBEAT_S = 5.0


class TrialKeeper(Callback):
    """Writes each ended trial at once. What cannot be written stops the run (`lost`); finished rows stay."""

    def __init__(self, ledger: Ledger, study: str, network: Network, *, wanted: int, done: int, failed: int) -> None:
        self.lost: OvertoneError | None = None
        self.ledger, self.study = ledger, study
        self._network = network
        self._wanted, self._before, self._done, self._failed = wanted, done, done, failed
        self._running = 0
        self._began, self._beat = time.monotonic(), 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Nothing goes into Ray Tune's own snapshot of the experiment, which is never read: the ledger is the truth."""
        return {}

    @abstractmethod
    def write(self, row: TrialRow) -> None:
        """Make a row last."""

    @abstractmethod
    def tell(self, row: TrialRow | None) -> None:
        """Say where the run stands; `row` is a trial that ended just now."""

    @abstractmethod
    def with_model(self, row: TrialRow, trial: Any) -> TrialRow:
        """Keep the packed model in a finished trial's checkpoint, where it is to be kept; the row that says which."""

    def tally(self) -> Tally:
        """Where the run stands."""
        here, left = self._done - self._before, self._wanted - self._done
        return Tally(
            wanted=self._wanted,
            done=self._done,
            failed=self._failed,
            running=self._running,
            seconds_left=(time.monotonic() - self._began) / here * left if here else None,
        )

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """One more is running."""
        self._running += 1
        self._tell()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Say now and then that the run is alive."""
        if time.monotonic() - self._beat > _HEARTBEAT_S:
            self._tell()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Keep a trial that ended by itself; one that was interrupted leaves nothing, and runs again on resume."""
        report = trial.last_result or {}
        self._running -= 1
        if report.get("status") == "failed":
            self._keep(failed_row(self.study, trial.config, report, report["error"], self._network))
        elif report.get("status") == "finished" and trial.checkpoint is not None:
            self.guarded(lambda: self._keep_finished(trial, report))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Keep a trial whose worker died for good."""
        self._running -= 1
        reason = str(trial.get_error() or "the worker died").strip().splitlines()[-1]
        self._keep(failed_row(self.study, trial.config, trial.last_result or {}, reason, self._network))

    def guarded(self, action: Callable[[], object]) -> None:
        """Let no error escape into Ray Tune, which would blame the trial for it."""
        try:
            action()
        except OvertoneError as error:
            self.lost = self.lost or error

    def _keep_finished(self, trial: Any, report: Mapping[str, Any]) -> None:
        self._keep(self.with_model(finished_row(self.study, trial.config, report), trial))

    def _keep(self, row: TrialRow) -> None:
        self.guarded(lambda: self.write(row))
        if self.lost is None:
            self._done += 1
            self._failed += row.status != TrialStatus.FINISHED
            self._tell(row)

    def _tell(self, row: TrialRow | None = None) -> None:
        if self.lost is None:
            self._beat = time.monotonic()
            self.guarded(lambda: self.tell(row))


class StopWhenLost(Stopper):
    """Stops all trials once the keeper cannot write any more."""

    def __init__(self, keeper: TrialKeeper) -> None:
        self._keeper = keeper

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never stops a single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether to stop."""
        return self._keeper.lost is not None
