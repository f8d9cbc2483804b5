"""What a search leaves behind as its trials end: rows, models, the front, and what `overtone status` reads."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from results.ledger.ledger import Ledger
from results.pareto.dominance import front_mask
from results.pareto.front import hypervolume, reference_point
from results.schema import TrialRow, TrialStatus, to_table
from search.runner.dashboards import Observer
from search.runner.ledger_callback import LedgerCallback
from search.runner.progress import StudyProgress
from search.runner.trainable import checkpoint_name
from search.study.record import reused_row
from spaces import Network

__all__ = ["StudyCallback"]


class StudyCallback(LedgerCallback):
    """Keeps the trials of a search."""

    def __init__(
        self,
        ledger: Ledger,
        study: str,
        network: Network,
        observers: Sequence[Observer],
        *,
        wanted: int,
        keep: str,
        gpus: float = 0,
        stopped: Container[str] = (),
        begun_again: Container[str] = (),
    ) -> None:
        past = ledger.trials(study, columns=["status", "total_s"])
        ended = Counter(past.column("status").to_pylist())
        super().__init__(ledger, study, network, wanted=wanted, ended=ended, stopped=stopped, begun_again=begun_again)
        self._seconds = float(pc.sum(past.column("total_s")).as_py() or 0)
        self._observers, self._keep_all, self._gpus = observers, keep == "all", gpus
        self._objectives = ledger.objectives(study)
        self._uncompressed = ledger.study(study)["uncompressed"]
        self._members = ledger.front(study)
        self._found: dict[str, Any] | None = None

    def answer(self, suggestion: dict[str, Any], row: Mapping[str, Any]) -> None:
        """Keep what another study's row tells of a suggestion, which need not be run."""
        self.keep(reused_row(self.study, suggestion, row))

    def write(self, row: TrialRow) -> None:
        """Append the row, and bring the front up to date.

        Of models those are kept that no trial so far dominates, or all.
        """
        here = row.status == TrialStatus.FINISHED and row.reused_from is None
        if here and row.model_sha256 is not None and (self._keep_all or self._on_front(row)):
            self.ledger.adopt_model(checkpoint_name(self.study, row.trial), row.model_sha256)
        self.ledger.append(row)
        self._members, self._found = self.ledger.write_front(self.study), None
        self._seconds += row.total_s or 0.0

    def _on_front(self, row: TrialRow) -> bool:
        both = pa.concat_tables([self._members, to_table([row])])
        return bool(front_mask(both, self._objectives)[-1])

    def tell(self, row: TrialRow | None) -> None:
        """A trial that ended to who watches; else where the study stands, to other terminals too."""
        snapshot = self._snapshot()
        if row is None:
            self._write_progress("running", snapshot)
        for observer in self._observers:
            observer.show(snapshot, row)

    def close(self, state: str) -> None:
        """The last word of this run; the many small files of a finished study become few."""
        self._running.clear()
        self.guarded(lambda: self._write_progress(state, self._snapshot()))
        if state == "finished":
            self.guarded(lambda: self.ledger.compact(self.study))

    def _snapshot(self) -> StudyProgress:
        self._found = self._found or self._look()
        return StudyProgress(**asdict(self.run_progress()), **self._found, hours=self._seconds / 3600, gpus=self._gpus)

    def _look(self) -> dict[str, Any]:
        """What only changes when a trial ends."""
        names = [objective.name for objective in self._objectives]
        unknown = [o for o in self._objectives if o.direction == "min" and self._uncompressed.get(o.name) is None]
        trials = self.ledger.trials(self.study, columns=["status", *names]) if unknown else self._members
        reference = reference_point(self._objectives, self._uncompressed, trials)
        return {
            "front": self._members.num_rows,
            "hypervolume": hypervolume(self._members, self._objectives, reference),
        }

    def _write_progress(self, state: str, snapshot: StudyProgress) -> None:
        said = {
            "state": state,
            "updated_at": datetime.now(UTC).isoformat(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "unfinished": list(self.unfinished.values()),
            **snapshot.to_json(),
        }
        self.ledger.write_progress(self.study, said)
