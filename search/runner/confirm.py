"""Run trials again with other seeds, so that their scores carry an interval.

A repeat is the trial's own spec with another seed: the trial's plus 1, 2, ... up to the number that was asked for. Its
row names the trial in `repeat_of`, so the search knows, counts and suggests as before, and its model is not kept. The
ledger says which repeats are there already: a stopped run goes on, and more seeds add to those that are there.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from layers import UsageError
from results.queries.query import picks
from results.schema import TrialStatus
from search.runner.cluster import Resources, connected
from search.runner.engine import run_trials
from search.runner.gpu_probe import gpu_share
from search.runner.listed import ListCallback, ListSearcher
from search.runner.progress import Progress
from search.runner.run_lock import Claim
from search.study.plan import StudyPlan
from search.study.study_ledger import StudyLedger
from search.study.workload import Workload
from spaces import Network
from trainers.spec import TrialSpec
from trainers.training.recipe import TrainingRecipe

__all__ = ["RepeatResult", "confirm_trials", "rows_to_confirm"]


@dataclass(frozen=True, kw_only=True)
class RepeatResult:
    """How a run of repeats ended."""

    trials: tuple[str, ...]
    """The trials that were to be repeated."""
    wanted: int
    """Repeats of them in all, once the run is finished."""
    done: int
    """Repeats that have finished, now or earlier."""
    failed: int
    """Repeats that have failed."""


def rows_to_confirm(study: StudyLedger, which: str, *, where: str | None, seeds: int) -> list[dict[str, Any]]:
    """Return the picked trials (`front`, `best`, `knee`, or an id or number) as records.

    Raises `UsageError` if there is no such trial, or one that did not finish, and unless `seeds` are at least 1.
    """
    if seeds < 1:
        raise UsageError(f"seeds (={seeds}) must be at least 1")
    rows = picks(study.ledger, study.name, which, where=where)
    for row in rows:
        if row["status"] != TrialStatus.FINISHED:
            ended = "was never trained" if row["status"] == TrialStatus.SKETCH else row["status"]
            raise UsageError(f"pick (={which!r}) must be a finished trial: {row['trial']} {ended}")
    return rows


def confirm_trials(
    study: StudyLedger,
    rows: Sequence[Mapping[str, Any]],
    workload: Workload,
    *,
    seeds: int,
    resources: Resources,
    console: Console,
    claim: Claim,
) -> RepeatResult:
    """Repeat the trials of these rows over `seeds` further seeds each, while the study's `claim` is held.

    Finished repeats are not run again, failed ones are.
    """
    repeats = [_repeat(row, offset, workload.network) for offset in range(1, seeds + 1) for row in rows]
    StudyPlan.from_record(study.record()).check_runtime()
    finished = _by_status(study, repeats)[TrialStatus.FINISHED]
    missing = [repeat for repeat in repeats if repeat["trial"] not in finished]
    if missing:
        recipe = StudyPlan.from_record(study.record()).recipe
        _run(study, missing, workload, recipe, resources, console, claim, wanted=len(repeats))
    ended = _by_status(study, repeats)
    return RepeatResult(
        trials=tuple(row["trial"] for row in rows),
        wanted=len(repeats),
        done=len(ended[TrialStatus.FINISHED]),
        failed=len(ended[TrialStatus.FAILED]),
    )


def _repeat(row: Mapping[str, Any], offset: int, network: Network) -> dict[str, Any]:
    """Return the suggestion of a row's trial with its seed moved by `offset`."""
    spec = TrialSpec.from_json(json.loads(row["spec"]))
    spec = dataclasses.replace(spec, seed=spec.seed + offset)
    trial = spec.digest(network)[:10]
    return {"number": row["number"], "trial": trial, "spec": spec.to_json(), "repeat_of": row["trial"]}


def _by_status(study: StudyLedger, repeats: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    """Return the ids of these repeats that have a row, by status."""
    ids = {repeat["trial"] for repeat in repeats}
    ended: dict[str, set[str]] = {status.value: set() for status in TrialStatus}
    for row in study.repeats().select(["trial", "status"]).to_pylist():
        if row["trial"] in ids:
            ended[row["status"]].add(row["trial"])
    return ended


def _run(
    study: StudyLedger,
    missing: Sequence[Mapping[str, Any]],
    workload: Workload,
    recipe: TrainingRecipe,
    resources: Resources,
    console: Console,
    claim: Claim,
    *,
    wanted: int,
) -> None:
    """Run the missing ones of the `wanted` repeats."""
    with connected(resources.address), Progress(console, "repeats") as progress:
        resources = resources.resolved(lambda: gpu_share(workload, recipe, console))
        line = f"study {study.name}: {len(missing)} of {wanted} repeats to run, {resources.line()}"
        console.print(line, highlight=False)
        searcher = ListSearcher(missing)
        callback = ListCallback(
            study,
            workload.network,
            progress,
            wanted=wanted,
            ended={TrialStatus.FINISHED: wanted - len(missing)},
            retried=searcher.retries.retried,
            ensure_held=claim.ensure_held,
        )
        run_trials(searcher, callback, workload, resources, console)
    if callback.failure is not None:
        raise callback.failure
