"""What a search leaves behind as its trials end: rows, models, the front, and what `overtone status` reads."""

from __future__ import annotations

import hashlib
import os
import socket
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from results.dominance import front_mask
from results.front import hypervolume, reference_point
from results.ledger import Ledger
from results.schema import TrialRow, TrialStatus, to_table
from search.keeper import TrialKeeper
from search.progress import Progress, Snapshot
from search.trainable import MODEL_FILE
from spaces import Network

__all__ = ["Recorder"]


class Recorder(TrialKeeper):
    """Keeps the trials of a search."""

    def __init__(
        self, ledger: Ledger, study: str, network: Network, progress: Progress, *, wanted: int, keep: str
    ) -> None:
        statuses = ledger.trials(study).column("status").to_pylist()
        failed = sum(status != TrialStatus.FINISHED for status in statuses)
        super().__init__(ledger, study, network, wanted=wanted, done=len(statuses), failed=failed)
        self._progress, self._keep_all = progress, keep == "all"
        self._objectives = ledger.objectives(study)
        self._uncompressed = ledger.study(study)["uncompressed"]

    def write(self, row: TrialRow) -> None:
        """Append the row, and bring the front up to date."""
        self.ledger.append(row)
        self.ledger.write_front(self.study)

    def with_model(self, row: TrialRow, trial: Any) -> TrialRow:
        """The row names its packed model, kept or not: what is kept is what no trial so far dominates, or all."""
        with trial.checkpoint.as_directory() as folder:
            packed = Path(folder, MODEL_FILE).read_bytes()
        if self._keep_all or self._on_front(row):
            self.ledger.put_model(packed)
        return replace(row, model_sha256=hashlib.sha256(packed).hexdigest())

    def _on_front(self, row: TrialRow) -> bool:
        both = pa.concat_tables([self.ledger.front(self.study), to_table([row])])
        return bool(front_mask(both, self._objectives)[-1])

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
