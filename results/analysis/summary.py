"""A study at a glance: its trials, front, hypervolume, knee and baseline, computed once for all that show them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from results.analysis.confidence import study_confidence
from results.ledger.ledger import Ledger
from results.objectives import Objective
from results.pareto.front import front, knee
from results.pareto.hypervolume import hypervolume_trace, reference_point
from results.schema import TrialStatus

__all__ = ["Summary", "confidence_by_trial", "summarize"]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The contents of a report, a plot or a status line about one study."""

    study: str
    store: str
    """The store's URI as it may be shown, without credentials."""
    record: Mapping[str, Any]
    objectives: Sequence[Objective]
    trials: pa.Table
    finished: pa.Table
    """The trials with a result, in the order of their numbers."""
    sketches: pa.Table
    """Configs that were calibrated and measured, and never trained: in nothing else of this summary."""
    front: pa.Table
    knee: Mapping[str, Any] | None
    """The front's knee as a record, None while no trial has finished."""
    baseline: Mapping[str, float]
    """The uncompressed network's figures that are known and finite: its score under `score`, costs, `val_images`."""
    reference: Mapping[str, float]
    history: pa.Table
    """Hypervolume after each finished trial, as `results.pareto.hypervolume` gives it."""

    @property
    def score_name(self) -> str:
        """What people call the score, such as `val_miou`."""
        return str(self.record["score_name"])

    def count(self, status: TrialStatus) -> int:
        """Return how many trials ended like this."""
        return int(pc.sum(pc.equal(self.trials.column("status"), status.value)).as_py() or 0)

    @property
    def hypervolume(self) -> float:
        """The hypervolume of all finished trials, in [0, 1]."""
        return float(self.history.column("hypervolume")[-1].as_py()) if self.history.num_rows else 0.0


def summarize(ledger: Ledger, study: str) -> Summary:
    """Read a study and compute what people ask for first."""
    record, objectives, trials = ledger.study(study), ledger.objectives(study), ledger.trials(study)
    finished = trials.filter(pc.equal(trials.column("status"), TrialStatus.FINISHED.value))
    members = front(trials, objectives)
    baseline = _finite(record.get("uncompressed") or {})
    reference = reference_point(objectives, baseline, trials)
    return Summary(
        study=study,
        store=ledger.store.label,
        record=record,
        objectives=objectives,
        trials=trials,
        finished=finished,
        sketches=ledger.sketches(study),
        front=members,
        knee=knee(trials, objectives) if members.num_rows else None,
        baseline=baseline,
        reference=reference,
        history=hypervolume_trace(trials, objectives, reference),
    )


def confidence_by_trial(ledger: Ledger, summary: Summary) -> dict[str, dict[str, Any]]:
    """Return the columns of `results.analysis.confidence` of each member of the front, by trial.

    A trial that is not in it, or has `seeds` of 1, has been run once.
    """
    rows = study_confidence(ledger, summary.study, summary.trials).to_pylist()
    return {row["trial"]: {name: _number(value) for name, value in row.items() if name != "trial"} for row in rows}


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(v) for name, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
