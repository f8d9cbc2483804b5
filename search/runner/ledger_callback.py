"""Ray Tune's callback that writes a row for each ended trial at once; subclasses publish the progress."""

from __future__ import annotations

import re
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray.exceptions import ActorDiedError
from ray.tune import Callback, Stopper

from layers import OvertoneError
from results.schema import TrialRow, TrialStatus
from search.runner.progress import RunProgress
from search.runner.run_lock import HEARTBEAT_S
from search.study.record import failed_row, finished_row, pruned_row
from search.study.study_ledger import StudyLedger
from spaces import Network

__all__ = ["LedgerCallback", "StopOnFailure"]

_DETAIL = re.compile(r"\t(class_name|actor_id|pid|name|namespace|ip): ")
_ADVICE = "If the process was killed by the kernel OOM killer"
"""What Ray advises to those who run it, at the end of how a worker died."""
_PUBLISH_S = 0.1
"""Least seconds between two publications of the progress."""


class LedgerCallback(Callback):
    """Writes the row of each ended trial at once. A row that cannot be written stops the run (`failure`)."""

    def __init__(
        self,
        study: StudyLedger,
        network: Network,
        *,
        wanted: int,
        ended: Mapping[str, int],
        stopped: Container[str] = (),
        retried: Container[str] = (),
        ensure_held: Callable[[], None] = lambda: None,
    ) -> None:
        """Start with `ended` trials of the `wanted` ones, counted by status, in the ledger.

        `stopped` are Ray Tune's ids of the trials that were stopped early, `retried` of those whose worker died and
        that are suggested again. `ensure_held` raises once another process has taken the study: nothing is written
        from then on.
        """
        self.failure: OvertoneError | None = None
        self.study = study
        self._network = network
        self._stopped = stopped
        self._retried = retried
        self._ensure_held = ensure_held
        self._wanted = wanted
        self._ended = Counter(ended)
        self._ended_before = self._ended.total()
        self._running: set[str] = set()
        self.unfinished: dict[str, dict[str, Any]] = {}
        """Suggestions that were begun and have left no row, by the ids of their trials in the ledger."""
        self._started = time.monotonic()
        self._published = 0.0
        self._changed = False

    def __getstate__(self) -> dict[str, Any]:
        """Leave nothing for Ray Tune's own snapshot of the experiment, which is never read: the ledger is the truth."""
        return {}

    @abstractmethod
    def write(self, row: TrialRow) -> None:
        """Make a row last; of a finished trial maybe the packed model too, which it left at its `checkpoint_name`."""

    def timed_row(self, suggestion: Mapping[str, Any], report: Mapping[str, Any]) -> TrialRow:
        """Return the row of a trial that another study has run, with the latency that was reported."""
        raise NotImplementedError

    def finished_row(self, suggestion: Mapping[str, Any], report: Mapping[str, Any]) -> TrialRow:
        """Return the row of a trial that ran to its end."""
        return finished_row(self.study.name, suggestion, report, report["model_sha256"])

    @abstractmethod
    def publish(self, row: TrialRow | None) -> None:
        """Publish the progress. `row` is the trial that just ended, or None for a heartbeat."""

    def run_progress(self) -> RunProgress:
        """Return the progress of the run."""
        done = self._ended.total()
        here = done - self._ended_before
        left = self._wanted - done
        return RunProgress(
            wanted=self._wanted,
            done=done,
            failed=self._ended[TrialStatus.FAILED],
            pruned=self._ended[TrialStatus.PRUNED],
            running=len(self._running),
            seconds_left=(time.monotonic() - self._started) / here * left if here else None,
        )

    def record_row(self, row: TrialRow) -> None:
        """Make the row of an ended trial last, delete its checkpoint, and publish the progress."""
        self.guard(self._ensure_held)
        if self.failure is None:
            self.guard(lambda: self.write(row))
        if self.failure is None:
            self._ended[row.status] += 1
            if self.unfinished.pop(row.trial, None) is not None:
                self.guard(lambda: self.study.delete_checkpoint(row.trial))
            self._changed = True
            self.guard(lambda: self.publish(row))

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count one more running trial."""
        self._running.add(trial.trial_id)
        self.unfinished[trial.config["trial"]] = trial.config
        self._changed = True

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Publish the progress if it has changed, and as a heartbeat."""
        silent = time.monotonic() - self._published
        if self.failure is None and silent > (_PUBLISH_S if self._changed else HEARTBEAT_S):
            self._published = time.monotonic()
            self._changed = False
            self.guard(self._ensure_held)
            self.guard(lambda: self.publish(None))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record a trial that ended or was stopped early; an interrupted one leaves no row, and goes on later."""
        report = trial.last_result or {}
        self._running.discard(trial.trial_id)
        if report.get("status") == "failed":
            self.record_row(failed_row(self.study.name, trial.config, report, report["error"], self._network))
        elif report.get("status") == "timed":
            self.record_row(self.timed_row(trial.config, report))
        elif trial.trial_id in self._stopped:
            self.record_row(pruned_row(self.study.name, trial.config, report))
        elif report.get("status") == "finished":
            self.record_row(self.finished_row(trial.config, report))
        elif report.get("status") == "store_failed":
            self.failure = self.failure or OvertoneError(report["error"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record a trial whose worker died for the last time that it may."""
        self._running.discard(trial.trial_id)
        if trial.trial_id in self._retried:
            return
        reason = _death(_last_error(trial))
        self.record_row(failed_row(self.study.name, trial.config, trial.last_result or {}, reason, self._network))

    def guard(self, action: Callable[[], object]) -> None:
        """Let no error escape into Ray Tune, which would blame the trial for it."""
        try:
            action()
        except OvertoneError as error:
            self.failure = self.failure or error


def _last_error(trial: Any) -> str:
    """Return what Ray said of the last failure of a trial, '' if nothing.

    Ray Tune writes it into a file of the driver, which is not yet where its own `get_error` looks.
    """
    with suppress(OSError, TypeError):
        return Path(trial.error_file).read_text(errors="replace").rpartition("Failure # ")[2].partition("\n")[2]
    return ""


def _death(said: str) -> str:
    """Return in one line why a worker died: what it raised last, or how Ray saw it end."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and not _DETAIL.match(line)]
    if "Traceback" in said:
        return lines[-1]
    reason = " ".join(line for line in lines if line != ActorDiedError.BASE_ERROR_MSG).partition(_ADVICE)[0].strip()
    return f"the worker died: {reason}" if reason else "the worker died"


class StopOnFailure(Stopper):
    """Stops all trials once the callback cannot write any more."""

    def __init__(self, callback: LedgerCallback) -> None:
        self._callback = callback

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: single trials are never stopped."""
        return False

    def stop_all(self) -> bool:
        """Return whether to stop."""
        return self._callback.failure is not None
