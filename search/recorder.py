"""What a search leaves behind as its trials end: rows, models, the front, and what `overtone status` reads."""

from __future__ import annotations

import os
import socket
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from results.front import hypervolume, reference_point
from results.ledger import Ledger
from results.schema import TrialRow, TrialStatus
from search.keeper import TrialKeeper
from search.progress import Progress, Snapshot
from search.trainable import MODEL_FILE
from spaces import Network

__all__ = ["Recorder"]


class Recorder(TrialKeeper):
    """Keeps the trials of a search."""

    def __init__(self, ledger: Ledger, study: str, network: Network, progress: Progress, *, wanted: int) -> None:
        statuses = ledger.trials(study).column("status").to_pylist()
        failed = sum(status != TrialStatus.FINISHED for status in statuses)
        super().__init__(ledger, study, network, wanted=wanted, done=len(statuses), failed=failed)
        self._progress = progress
        self._objectives = ledger.objectives(study)
        self._uncompressed = ledger.study(study)["uncompressed"]

    def write(self, row: TrialRow) -> None:
        """Append the row, and bring the front up to date."""
        self.ledger.append(row)
        self.ledger.write_front(self.study)

    def model_of(self, trial: Any) -> str:
        """Every trial's model is kept."""
        with trial.checkpoint.as_directory() as folder:
            return self.ledger.put_model(os.path.join(folder, MODEL_FILE))

    def tell(self, row: TrialRow | None) -> None:
        """To other terminals, and to this one."""
        snapshot = self._snapshot()
        self._write_progress("running", snapshot)
        self._progress.show(snapshot, row)

    def close(self, state: str) -> None:
        """The last word of this run; the many small files of a finished study become few."""
        self._running = 0
        self.guarded(lambda: self._write_progress(state, self._snapshot()))
        if state == "finished":
            self.guarded(lambda: self.ledger.compact(self.study))

    def _snapshot(self) -> Snapshot:
        names = [objective.name for objective in self._objectives]
        trials = self.ledger.trials(self.study, columns=["status", *names])
        members = self.ledger.front(self.study)
        reference = reference_point(self._objectives, self._uncompressed, trials)
        return Snapshot(
            **asdict(self.tally()),
            front=members.num_rows,
            hypervolume=hypervolume(members, self._objectives, reference),
        )

    def _write_progress(self, state: str, snapshot: Snapshot) -> None:
        said = {
            "state": state,
            "updated_at": datetime.now(UTC).isoformat(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            **snapshot.to_json(),
        }
        self.ledger.write_progress(self.study, said)
