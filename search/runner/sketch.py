"""Sketch a study: the front that is predicted without any training, its few most telling networks built and measured.

They run where trials run, their start and validation alone, and leave rows of status `sketch`, which the search does
not count. The ledger says which are there already: a stopped run goes on, and more points add to those that are there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Any

from rich.console import Console

from layers import OvertoneError
from results.analysis.effects import EffectModel
from results.schema import TrialRow, TrialStatus
from search.optimize.additive_model import Sketch
from search.optimize.sketch import sketch_front
from search.runner.cluster import Resources, connected
from search.runner.effects import ensure_effects
from search.runner.engine import run_trials
from search.runner.gpu_probe import gpu_share
from search.runner.listed import ListCallback, ListSearcher
from search.runner.progress import Progress
from search.runner.run_lock import Claim
from search.study.plan import StudyPlan
from search.study.record import sketch_row
from search.study.study_ledger import StudyLedger
from search.study.workload import Workload, make_space

__all__ = ["SketchResult", "sketch_study"]

_COSTS = {"size_bytes": ("size_bytes", "parameters"), "flops": ("flops", "macs")}
"""Costs that the predicted front trades the loss for, and the objectives that ask for them."""


@dataclass(frozen=True, kw_only=True)
class SketchResult:
    """How a run of sketches ended."""

    predicted: Mapping[str, float]
    """The predicted rise of the loss of each chosen network, by the id of its row, the most telling first."""
    done: int
    """Those that were measured, now or earlier."""
    failed: int
    """Those that failed, which leave no row."""

    @property
    def wanted(self) -> int:
        """How many were to be measured."""
        return len(self.predicted)


def sketch_study(
    study: StudyLedger,
    workload: Workload,
    *,
    points: int,
    resources: Resources,
    console: Console,
    claim: Claim,
) -> SketchResult:
    """Measure up to this many networks of the predicted front, while the study's `claim` is held.

    Effects of single blocks are measured first where they lack. What has a row is not measured again.
    """
    plan = StudyPlan.from_record(study.record())
    space = make_space(plan, workload.network)
    with connected(resources.address):
        resources = resources.resolved(lambda: gpu_share(workload, plan.recipe, console))
        as_many = replace(plan, epochs=max(plan.epochs, StudyPlan.epochs))
        effects = ensure_effects(study, workload, space, as_many, resources, console, claim.ensure_held)
        if effects is None:
            raise OvertoneError(f"study {study.name!r} has too few images to measure what compressing a block does")
        chosen = sketch_front(
            space,
            EffectModel.fit(effects, workload.network).loss_increase,
            plan.budget,
            points=points,
            worst=log(workload.data.classes) - effects.loss,  # no better than a guess
            costs=_costs(plan),
        )
        suggestions = [_suggestion(number, sketch, plan, workload) for number, sketch in enumerate(chosen)]
        done = _measured(study)
        missing = [suggestion for suggestion in suggestions if suggestion["trial"] not in done]
        failed = _run(study, missing, workload, resources, console, claim, wanted=len(chosen)) if missing else 0
    ids = [suggestion["trial"] for suggestion in suggestions]
    return SketchResult(
        predicted={trial: sketch.loss_increase for trial, sketch in zip(ids, chosen, strict=True)},
        done=len(_measured(study).intersection(ids)),
        failed=failed,
    )


def _costs(plan: StudyPlan) -> list[str]:
    asked = [cost for cost, objectives in _COSTS.items() if not set(objectives).isdisjoint(plan.objectives)]
    return asked or list(_COSTS)


def _suggestion(number: int, sketch: Sketch, plan: StudyPlan, workload: Workload) -> dict[str, Any]:
    """Return what a worker runs; its id is no trial's, not even of one without epochs."""
    spec = plan.sketch_spec(sketch.config, **workload.hashes())
    trial = hashlib.sha256(f"sketch {spec.digest(workload.network)}".encode()).hexdigest()[:10]
    return {"number": number, "trial": trial, "spec": spec.to_json()}


def _measured(study: StudyLedger) -> set[str]:
    return set(study.sketches().column("trial").to_pylist())


def _run(
    study: StudyLedger,
    missing: Sequence[Mapping[str, Any]],
    workload: Workload,
    resources: Resources,
    console: Console,
    claim: Claim,
    *,
    wanted: int,
) -> int:
    """Measure the missing ones of the `wanted` sketches; return how many failed."""
    line = f"study {study.name}: {len(missing)} of {wanted} sketches to measure, {resources.line()}"
    console.print(line, highlight=False, soft_wrap=True)
    searcher = ListSearcher(missing)
    with Progress(console, "sketches") as progress:
        callback = _SketchCallback(
            study,
            workload.network,
            progress,
            wanted=wanted,
            ended={TrialStatus.SKETCH: wanted - len(missing)},
            retried=searcher.retries.retried,
            ensure_held=claim.ensure_held,
        )
        run_trials(searcher, callback, workload, resources, console)
    if callback.failure is not None:
        raise callback.failure
    if len(callback.errors) == len(missing):
        raise OvertoneError(f"no sketch could be measured: {callback.errors[0].strip().splitlines()[-1]}")
    return len(callback.errors)


class _SketchCallback(ListCallback):
    """Records sketches with their models; one that failed is left to the next run."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.errors: list[str] = []

    def finished_row(self, suggestion: Mapping[str, Any], report: Mapping[str, Any]) -> TrialRow:
        return sketch_row(self.study.name, suggestion, report, report["model_sha256"])

    def write(self, row: TrialRow) -> None:
        if row.status != TrialStatus.SKETCH:
            self.errors.append(str(row.error))
            return
        self.study.adopt_model(row.trial, str(row.model_sha256))
        super().write(row)
