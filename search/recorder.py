"""Keeps what Ray Tune reports: a row a trial, its model, the front, and what `overtone status` reads."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ray.tune import Callback, Stopper

from layers import OvertoneError
from results.front import front, hypervolume, reference_point
from results.ledger import Ledger
from results.schema import TrialRow, TrialStatus
from search.progress import Progress, Snapshot
from search.record import failed_row, finished_row
from search.trainable import MODEL_FILE
from spaces import Network

__all__ = ["Recorder", "StopWhenLost"]

_HEARTBEAT_S = 5.0


@dataclass(kw_only=True)
class _Counts:
    done: int = 0
    failed: int = 0
    running: int = 0


class Recorder(Callback):
    """Writes each ended trial at once. What cannot be written stops the study (`lost`); finished rows stay."""

    def __init__(self, ledger: Ledger, study: str, network: Network, progress: Progress, *, wanted: int) -> None:
        self.lost: OvertoneError | None = None
        self._ledger, self._study, self._network, self._progress = ledger, study, network, progress
        self._objectives = ledger.objectives(study)
        self._uncompressed = ledger.study(study)["uncompressed"]
        self._wanted, self._began, self._beat = wanted, time.monotonic(), 0.0
        past = ledger.trials(study)
        self._before = past.num_rows
        self._counts = _Counts(
            done=past.num_rows, failed=sum(s != TrialStatus.FINISHED for s in past.column("status").to_pylist())
        )

    def __getstate__(self) -> dict[str, Any]:
        """Nothing goes into Ray Tune's own snapshot of the experiment, which is never read: the ledger is the truth."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """One more is running."""
        self._counts.running += 1
        self._tell()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Say now and then that the search is alive."""
        if time.monotonic() - self._beat > _HEARTBEAT_S:
            self._tell()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Keep a trial that ended by itself; one that was interrupted leaves nothing, and runs again on resume."""
        report = trial.last_result or {}
        self._counts.running -= 1
        if report.get("status") == "failed":
            self._keep(failed_row(self._study, trial.config, report, report["error"], self._network))
        elif report.get("status") == "finished" and trial.checkpoint is not None:
            self._guarded(lambda: self._keep_finished(trial, report))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Keep a trial whose worker died for good."""
        self._counts.running -= 1
        reason = str(trial.get_error() or "the worker died").strip().splitlines()[-1]
        self._keep(failed_row(self._study, trial.config, trial.last_result or {}, reason, self._network))

    def close(self, state: str) -> None:
        """The last word of this run."""
        self._counts.running = 0
        self._guarded(lambda: self._write_progress(state))

    def _keep_finished(self, trial: Any, report: Mapping[str, Any]) -> None:
        with trial.checkpoint.as_directory() as folder:
            sha256 = self._ledger.put_model(os.path.join(folder, MODEL_FILE))
        self._keep(finished_row(self._study, trial.config, report, sha256))

    def _keep(self, row: TrialRow) -> None:
        def write() -> None:
            self._ledger.append(row)
            self._ledger.write_front(self._study)

        self._guarded(write)
        if self.lost is None:
            self._counts.done += 1
            self._counts.failed += row.status != TrialStatus.FINISHED
            self._tell(row)

    def _tell(self, row: TrialRow | None = None) -> None:
        if self.lost is not None:
            return
        self._beat = time.monotonic()
        self._guarded(lambda: self._write_progress("running"))
        self._guarded(lambda: self._progress.show(self._snapshot(), row))

    def _snapshot(self) -> Snapshot:
        trials = self._ledger.trials(self._study)
        members = front(trials, self._objectives)
        reference = reference_point(self._objectives, self._uncompressed, trials)
        here = self._counts.done - self._before
        left = self._wanted - self._counts.done
        return Snapshot(
            wanted=self._wanted,
            done=self._counts.done,
            failed=self._counts.failed,
            running=self._counts.running,
            front=members.num_rows,
            hypervolume=hypervolume(members, self._objectives, reference),
            seconds_left=(time.monotonic() - self._began) / here * left if here else None,
        )

    def _write_progress(self, state: str) -> None:
        snapshot = self._snapshot()
        said = {
            "state": state,
            "updated_at": datetime.now(UTC).isoformat(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            **snapshot.to_json(),
        }
        self._ledger.write_progress(self._study, said)

    def _guarded(self, write: Any) -> None:
        """Let no error escape into Ray Tune, which would blame the trial for it."""
        try:
            write()
        except OvertoneError as error:
            self.lost = self.lost or error


class StopWhenLost(Stopper):
    """Stops all trials once the recorder cannot write any more."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never stops a single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether to stop."""
        return self._recorder.lost is not None
