"""What a search leaves behind as its trials end: rows, models, the front, and the progress that `status` reads."""

from __future__ import annotations

import os
import socket
import warnings
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from layers.errors import OvertoneWarning
from results.formatting import format_place
from results.pareto.front import front
from results.pareto.hypervolume import hypervolume, reference_point
from results.schema import TrialRow, TrialStatus, to_table
from search.runner.dashboards import Observer
from search.runner.ledger_callback import LedgerCallback
from search.runner.progress import StudyProgress
from search.study.record import reused_row
from search.study.study_ledger import StudyLedger
from spaces import Network
from trainers.runtime.place import Place

__all__ = ["StudyCallback"]


class StudyCallback(LedgerCallback):
    """Records the trials of a search.

    The front's members are held in memory and gain or lose by one row at a time, so that a trial costs the driver
    nothing that grows with the study.
    """

    def __init__(
        self,
        study: StudyLedger,
        network: Network,
        observers: Sequence[Observer],
        *,
        wanted: int,
        keep: str,
        gpus: float = 0,
        stopped: Container[str] = (),
        retried: Container[str] = (),
        ensure_held: Callable[[], None] = lambda: None,
    ) -> None:
        """`keep` is that of the plan, `gpus` are those of each trial; the rest is as `LedgerCallback` has it."""
        self._objectives = study.objectives()
        past = study.trials(["status", "total_s", *_PLACE, *(objective.column for objective in self._objectives)])
        ended = Counter(past.column("status").to_pylist())
        super().__init__(
            study, network, wanted=wanted, ended=ended, stopped=stopped, retried=retried, ensure_held=ensure_held
        )
        self.measured: Mapping[str, Mapping[str, Any]] = {}
        """Rows of other studies that answer trials, by the digest of their spec."""
        self._places = set(filter(None, map(_place, past.select(_PLACE).to_pylist())))
        self._observers = observers
        self._keep_all = keep == "all"
        self._gpus = gpus
        record = study.record()
        self._seconds = float(pc.sum(past.column("total_s")).as_py() or 0) + record.get("effects_s", 0.0)
        self._uncompressed = record["uncompressed"]
        self._reference = reference_point(self._objectives, self._uncompressed, past)
        self._members = study.front()
        self._hypervolume = hypervolume(self._members, self._objectives, self._reference)

    def reuse(self, suggestion: dict[str, Any], row: Mapping[str, Any]) -> None:
        """Record another study's row as the outcome of a suggestion, which need not be run."""
        self.record_row(reused_row(self.study.name, suggestion, row))

    def timed_row(self, suggestion: Mapping[str, Any], report: Mapping[str, Any]) -> TrialRow:
        """Return the row of a trial that another study has run, with the latency that was reported."""
        return reused_row(self.study.name, suggestion, self.measured[suggestion["earlier"]["spec_digest"]], report)

    def write(self, row: TrialRow) -> None:
        """Append the row, and update the front.

        Kept are the models of trials that no trial so far dominates, or all.
        """
        table = to_table([row])
        members = front(pa.concat_tables([self._members, table]), self._objectives)
        run_here = row.status == TrialStatus.FINISHED and row.reused_from is None
        if run_here and row.model_sha256 is not None and (self._keep_all or _holds(members, row)):
            self.study.adopt_model(row.trial, row.model_sha256)
        self._warn_of_place(row)
        self.study.append(row)
        self.study.write_front(members)
        self._members = members
        self._reference = self._reference_with(table)
        self._hypervolume = hypervolume(members, self._objectives, self._reference)
        self._seconds += row.total_s or 0.0

    def publish(self, row: TrialRow | None) -> None:
        """Show an ended trial, or the progress, to observers; the progress goes to other terminals too."""
        progress = self._study_progress()
        if row is None:
            self._write_progress("running", progress)
        for observer in self._observers:
            observer.show(progress, row)

    def close(self, state: str) -> None:
        """Write the last progress of this run, and merge the many small files of a finished study into few."""
        self._running.clear()
        self.guard(lambda: self._write_progress(state, self._study_progress()))
        if state == "finished" and self.failure is None:
            self.guard(self.study.compact)

    def _warn_of_place(self, row: TrialRow) -> None:
        """Warn of the first latency that the others cannot be compared with."""
        place = _place(row.to_record())
        if place is not None and self._places and place not in self._places:
            places = " and in ".join(format_place(*other) for other in (*self._places, place))
            warnings.warn(
                f"trials take their latency in {places}: they cannot be compared", OvertoneWarning, stacklevel=2
            )
        self._places |= {place} if place else set()

    def _reference_with(self, row: pa.Table) -> dict[str, float]:
        """Return the reference point after one more row.

        A cost that the uncompressed network has not measured counts from the worst trial, NaN while there is none.
        """
        alone = reference_point(self._objectives, self._uncompressed, row)
        return {name: float(np.fmax(value, alone[name])) for name, value in self._reference.items()}

    def _study_progress(self) -> StudyProgress:
        return StudyProgress(
            **asdict(self.run_progress()),
            front=self._members.num_rows,
            hypervolume=self._hypervolume,
            hours=self._seconds / 3600,
            gpus=self._gpus,
        )

    def _write_progress(self, state: str, progress: StudyProgress) -> None:
        self._ensure_held()
        self.study.write_progress(
            {
                "state": state,
                "updated_at": datetime.now(UTC).isoformat(),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "unfinished": list(self.unfinished.values()),
                **progress.to_json(),
            }
        )


_PLACE = [field.name for field in fields(Place)]


def _place(record: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Return where a row's latency was taken, None if it has none."""
    return tuple(record[name] for name in _PLACE) if record["latency_runtime"] else None


def _holds(members: pa.Table, row: TrialRow) -> bool:
    return row.trial in members.column("trial").to_pylist()
