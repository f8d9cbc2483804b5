"""What a search leaves behind as its trials end: rows, models, the front, and what `overtone status` reads."""

from __future__ import annotations

import hashlib
import os
import socket
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from results.dominance import front_mask
from results.front import hypervolume, reference_point
from results.ledger import Ledger
from results.schema import TrialRow, to_table
from search.keeper import TrialKeeper
from search.progress import Snapshot
from search.record import reused_row
from search.trainable import MODEL_FILE
from search.watch import Watcher
from spaces import Network

__all__ = ["Recorder"]


class Recorder(TrialKeeper):
    """Keeps the trials of a search."""

    def __init__(
        self,
        ledger: Ledger,
        study: str,
        network: Network,
        watchers: Sequence[Watcher],
        *,
        wanted: int,
        keep: str,
        gpus: float = 0,
        stopped: Container[str] = (),
    ) -> None:
        ended = Counter(ledger.trials(study).column("status").to_pylist())
        super().__init__(ledger, study, network, wanted=wanted, ended=ended, stopped=stopped)
        self._watchers, self._keep_all, self._gpus = watchers, keep == "all", gpus
        self._objectives = ledger.objectives(study)
        self._uncompressed = ledger.study(study)["uncompressed"]
        self._found: dict[str, Any] | None = None

    def answer(self, suggestion: dict[str, Any], row: Mapping[str, Any]) -> None:
        """Keep what another study's row tells of a suggestion, which need not be run."""
        self.keep(reused_row(self.study, suggestion, row))

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
        if row is not None or self._found is None:
            self._found = self._look()
        snapshot = self._snapshot()
        self._write_progress("running", snapshot)
        for watcher in self._watchers:
            watcher.show(snapshot, row)

    def close(self, state: str) -> None:
        """The last word of this run; the many small files of a finished study become few."""
        self._running.clear()
        self.guarded(lambda: self._write_progress(state, self._snapshot()))
        if state == "finished":
            self.guarded(lambda: self.ledger.compact(self.study))

    def _snapshot(self) -> Snapshot:
        return Snapshot(**asdict(self.tally()), **(self._found or self._look()), gpus=self._gpus)

    def _look(self) -> dict[str, Any]:
        """What only changes when a trial ends."""
        names = [objective.name for objective in self._objectives]
        trials = self.ledger.trials(self.study, columns=["status", "total_s", *names])
        members = self.ledger.front(self.study)
        reference = reference_point(self._objectives, self._uncompressed, trials)
        return {
            "front": members.num_rows,
            "hypervolume": hypervolume(members, self._objectives, reference),
            "hours": float(pc.sum(trials.column("total_s")).as_py() or 0) / 3600,
        }

    def _write_progress(self, state: str, snapshot: Snapshot) -> None:
        said = {
            "state": state,
            "updated_at": datetime.now(UTC).isoformat(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "unfinished": list(self.unfinished.values()),
            **snapshot.to_json(),
        }
        self.ledger.write_progress(self.study, said)
