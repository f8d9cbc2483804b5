"""Run trials again with other seeds, so that their accuracies carry an interval.

A repeat is the trial's own spec with a seed of its own: the trial's plus 1, 2, ... up to as many as were asked for. Its
row names the trial in `repeat_of`, so nothing that the search knows, counts or suggests changes, and its model is not
kept. The ledger says which repeats are there already: what was stopped goes on, and asking for more seeds adds them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.search import Searcher
from rich.console import Console

from layers import UsageError
from results.ledger.ledger import Ledger
from results.queries.query import picks
from results.schema import TrialRow, TrialStatus
from search.optimize.retries import RetryPolicy
from search.runner.cluster import Resources, connected
from search.runner.engine import run_trials
from search.runner.gpu_probe import gpu_share
from search.runner.launch import open_study
from search.runner.ledger_callback import LedgerCallback
from search.runner.progress import Progress
from search.study.plan import StudyPlan
from search.study.workload import Workload
from spaces import Network
from trainers.spec import TrialSpec

__all__ = ["RepeatResult", "confirm_trials"]


@dataclass(frozen=True, kw_only=True)
class RepeatResult:
    """How far a confirmation came."""

    trials: tuple[str, ...]
    """The trials that were to be repeated."""
    wanted: int
    """Repeats that were asked for in all."""
    done: int
    """Those of them that have finished, now or earlier."""
    failed: int
    """Those of them that have failed."""


def confirm_trials(
    ledger: Ledger, study: str, which: str, *, where: str | None, seeds: int, resources: Resources, console: Console
) -> RepeatResult:
    """Repeat the picked trials (`front`, `best`, `knee` or an id) over `seeds` further seeds each.

    Repeats that have finished are not run again, those that failed are. Raises `UsageError` where nothing can be
    repeated: no such trial, one that did not finish, other data or weights than the study's.
    """
    if seeds < 1:
        raise UsageError(f"seeds (={seeds}) must be at least 1.")
    rows = picks(ledger, study, which, where=where)
    for row in rows:
        if row["status"] != TrialStatus.FINISHED:
            raise UsageError(f"pick {which!r} names a trial that {row['status']}; only finished trials are confirmed.")
    plan, workload = open_study(ledger, study, console)
    asked = [_repeat(row, offset, workload.network) for offset in range(1, seeds + 1) for row in rows]
    finished = _ended(ledger, study, asked)[TrialStatus.FINISHED]
    missing = [suggestion for suggestion in asked if suggestion["trial"] not in finished]
    if missing:
        _run(ledger, study, missing, plan, workload, resources, console, wanted=len(asked))
    ended = _ended(ledger, study, asked)
    return RepeatResult(
        trials=tuple(row["trial"] for row in rows),
        wanted=len(asked),
        done=len(ended[TrialStatus.FINISHED]),
        failed=len(ended[TrialStatus.FAILED]),
    )


def _repeat(row: Mapping[str, Any], offset: int, network: Network) -> dict[str, Any]:
    """What an engine is asked to run: the row's trial with its seed moved by `offset`."""
    spec = TrialSpec.from_json(json.loads(row["spec"]))
    spec = dataclasses.replace(spec, seed=spec.seed + offset)
    trial = spec.digest(network)[:10]
    return {"number": row["number"], "trial": trial, "spec": spec.to_json(), "repeat_of": row["trial"]}


def _ended(ledger: Ledger, study: str, asked: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    """The ids of the asked repeats in the ledger, by status."""
    wanted = {suggestion["trial"] for suggestion in asked}
    found: dict[str, set[str]] = {status.value: set() for status in TrialStatus}
    rows = ledger.repeats(study).select(["trial", "status"]).to_pylist()
    for row in rows:
        if row["trial"] in wanted:
            found[row["status"]].add(row["trial"])
    return found


def _run(
    ledger: Ledger,
    study: str,
    missing: Sequence[Mapping[str, Any]],
    plan: StudyPlan,
    workload: Workload,
    resources: Resources,
    console: Console,
    *,
    wanted: int,
) -> None:
    with connected(resources.address), Progress(console, "repeats") as progress:
        share = resources.resolved(lambda: gpu_share(workload, plan.recipe))
        console.print(
            f"study {study}: {len(missing)} of {wanted} repeats to run, up to {share.concurrency} at a time, "
            f"each on {share.cpus_per_trial:g} CPU and {share.gpus_per_trial:g} GPU",
            highlight=False,
        )
        listed = _Listed(missing)
        callback = _Repeats(
            ledger,
            study,
            workload.network,
            progress,
            wanted=wanted,
            done=wanted - len(missing),
            begun_again=listed.attempts.begun_again,
        )
        run_trials(listed, callback, workload, share, ledger)
    if callback.lost is not None:
        raise callback.lost


class _Listed(Searcher):
    """Suggests what it was given, in order, and again that whose worker died."""

    def __init__(self, suggestions: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self._left = [dict(suggestion) for suggestion in suggestions]
        self._asked: dict[str, dict[str, Any]] = {}
        self.attempts = RetryPolicy()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        if not self._left:
            return None if self._asked else Searcher.FINISHED
        self._asked[trial_id] = self._left.pop(0)
        return self._asked[trial_id]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing is learned."""
        suggestion = self._asked.pop(trial_id)
        if error and self.attempts.should_retry(trial_id, suggestion):
            self._left.append(suggestion)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: the ledger is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was kept."""


class _Repeats(LedgerCallback):
    """Keeps the rows of repeats, and nothing else: the study's front, progress and models stay as they are."""

    def __init__(
        self,
        ledger: Ledger,
        study: str,
        network: Network,
        progress: Progress,
        *,
        wanted: int,
        done: int,
        begun_again: Container[str],
    ) -> None:
        ended = {TrialStatus.FINISHED.value: done}
        super().__init__(ledger, study, network, wanted=wanted, ended=ended, begun_again=begun_again)
        self._progress = progress

    def write(self, row: TrialRow) -> None:
        self.ledger.append(row)

    def tell(self, row: TrialRow | None) -> None:
        self._progress.show(self.run_progress(), row)
