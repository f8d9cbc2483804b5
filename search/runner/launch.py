"""Run a study on Ray Tune: new, to its end after a stop, or further than was first asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from optuna.storages import BaseStorage
from rich.console import Console
from threadpoolctl import threadpool_limits

from layers import UsageError
from results.ledger.ledger import Ledger
from results.objectives import parse_objectives
from search.optimize.candidates import Candidates
from search.optimize.initial import initial_configs
from search.optimize.pruner import ConformalPruner
from search.optimize.sampler import ConfigSampler, check_sampler
from search.optimize.searcher import FrontSearcher
from search.runner.cluster import Resources, connected
from search.runner.dashboards import Observer, TensorBoard, open_storage
from search.runner.engine import run_trials
from search.runner.gpu_probe import gpu_share
from search.runner.progress import Progress, decoding_bar
from search.runner.run_lock import ensure_not_running
from search.runner.scheduler import FrontStopper
from search.runner.study_callback import StudyCallback
from search.study.budget import Budget, extremes
from search.study.plan import StudyPlan
from search.study.reuse import comparable_studies, finished_rows, warm_start_rows
from search.study.workload import Workload, make_space
from spaces import NetworkConfig, Space
from trainers.data import DataSpec

__all__ = ["SearchResult", "DashboardOptions", "open_study", "resume_study", "start_study"]


@dataclass(frozen=True, kw_only=True)
class DashboardOptions:
    """Where else a running study can be seen."""

    tensorboard: Path | None = None
    """Folder of TensorBoard's files."""
    optuna_storage: str | None = None
    """What optuna-dashboard opens."""

    def opened(self, study: str) -> Dashboards:
        """Ready to be written; raises `OvertoneError` where that is not possible."""
        storage = None if self.optuna_storage is None else open_storage(self.optuna_storage)
        return Dashboards(storage, [] if self.tensorboard is None else [TensorBoard(self.tensorboard, study)])


class Dashboards(NamedTuple):
    storage: BaseStorage | None
    boards: Sequence[Observer]


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """How a run of a study ended."""

    done: int
    """Trials in the ledger."""
    wanted: int
    exhausted: bool
    """Whether no new config was found in the space."""


_NOWHERE = DashboardOptions()


def start_study(
    ledger: Ledger,
    name: str,
    plan: StudyPlan,
    resources: Resources,
    console: Console,
    shown: DashboardOptions = _NOWHERE,
) -> SearchResult:
    """Begin a study, or go on with one of the same name and the same settings."""
    parse_objectives(plan.objectives)
    check_sampler(plan.sampler)
    plan = replace(plan, data=plan.data.absolute())  # workers and later commands have other working directories
    with decoding_bar(console) as told:
        workload = Workload.load(plan, told)
    opened = shown.opened(name)
    plan = workload.resolved(plan)
    space = make_space(plan, workload.network)
    limits = extremes(space, plan.budget)
    if name in ledger.studies():
        record = ledger.study(name)
        _check_same(name, record, {**plan.to_record(), **workload.identity()})
        ensure_not_running(ledger, name, console)
        return _run(ledger, name, StudyPlan.from_record(record), workload, limits, resources, console, opened)
    about = {"dataset": plan.data.label, "uncompressed": workload.reference(), "choices": space.choices}
    record = {**plan.to_record(), **workload.identity(), **about}
    warm = warm_start_rows(ledger, name, record, lambda config: _may_try(config, space, plan.budget))
    record["trials"] = plan.trials + len(warm)
    with connected(resources.address):
        resources.resolved()
        ledger.create_study(name, record)
        if warm:
            ledger.append_many(warm)
        return _run(ledger, name, StudyPlan.from_record(record), workload, limits, resources, console, opened)


def resume_study(
    ledger: Ledger,
    name: str,
    more: int | None,
    resources: Resources,
    console: Console,
    shown: DashboardOptions = _NOWHERE,
) -> SearchResult:
    """Bring a study to its end, or run `more` trials than it has asked for so far."""
    if more is not None and more < 1:
        raise UsageError(f"trials (={more}) must be at least 1 more.")
    plan, workload = open_study(ledger, name, console)
    opened = shown.opened(name)
    limits = extremes(make_space(plan, workload.network), plan.budget)
    ensure_not_running(ledger, name, console)
    if more is None:
        return _run(ledger, name, plan, workload, limits, resources, console, opened)
    with connected(resources.address):
        resources.resolved()
        wanted = max(plan.trials, ledger.trials(name).num_rows) + more
        plan = StudyPlan.from_record(ledger.update_study(name, {"trials": wanted}))
        return _run(ledger, name, plan, workload, limits, resources, console, opened)


def open_study(ledger: Ledger, name: str, console: Console) -> tuple[StudyPlan, Workload]:
    """A study's plan, and its data and network loaded; `UsageError` where those are not the ones it was begun with."""
    record = ledger.study(name)
    plan = StudyPlan.from_record(record)
    with decoding_bar(console) as told:
        workload = Workload.load(plan, told)
    _check_same(name, record, {**plan.to_record(), **workload.identity()})
    return plan, workload


def _check_same(name: str, record: dict[str, Any], given: dict[str, Any]) -> None:
    undecided = {"keep", "miss_rate"} - record.keys() | {"trials", "weights"}  # of weights the content counts
    record = {
        **record,
        **StudyPlan.from_record(record).to_record(),
    }  # settings newer than the study are at their default
    record, given = _located(record), _located(given)
    for key, value in given.items():
        known = record.get(key)
        if known == value or key in undecided:
            continue
        if isinstance(known, dict) and isinstance(value, dict):
            key, known, value = next(
                (f"{key}.{part}", known.get(part), value.get(part))
                for part in {**known, **value}
                if known.get(part) != value.get(part)
            )
        raise UsageError(f"study {name!r} exists with {key} {known!r}, {value!r} was given; take another name.")


def _located(record: dict[str, Any]) -> dict[str, Any]:
    """The same with the data's folders from the root, which studies begun earlier have from a working directory."""
    return {**record, "data": asdict(DataSpec(**record["data"]).absolute())}


def _run(
    ledger: Ledger,
    name: str,
    plan: StudyPlan,
    workload: Workload,
    limits: tuple[NetworkConfig, NetworkConfig],
    resources: Resources,
    console: Console,
    opened: Dashboards,
) -> SearchResult:
    candidates, objectives = Candidates(make_space(plan, workload.network)), parse_objectives(plan.objectives)
    searcher = FrontSearcher(
        candidates,
        ConfigSampler(
            candidates,
            objectives,
            sampler=plan.sampler,
            seed=plan.seed,
            budget=plan.budget,
            storage=opened.storage,
            name=name,
        ),
        ConformalPruner(objectives, miss_rate=plan.miss_rate),
        budget=plan.budget,
        cheapest=limits[0],
        objectives=objectives,
        make_spec=lambda config: plan.spec(config, **workload.identity()),
        seed=plan.seed,
    )
    past = ledger.trials(name).to_pylist()
    for row in past:
        searcher.add_row(row)
    missing = plan.trials - len(past)
    if missing <= 0:
        return SearchResult(done=len(past), wanted=plan.trials, exhausted=False)
    waiting = _unfinished(ledger, name, past)
    with connected(resources.address), Progress(console) as progress, threadpool_limits(1, user_api="blas"):
        share = resources.resolved(lambda: gpu_share(workload, plan.recipe))
        callback = StudyCallback(
            ledger,
            name,
            workload.network,
            [progress, *opened.boards],
            wanted=plan.trials,
            keep=plan.keep,
            gpus=float(share.gpus_per_trial or 0),
            stopped=searcher.stopped,
            begun_again=searcher.attempts.begun_again,
        )
        searcher.begin(
            missing,
            seeds=initial_configs(candidates.space, plan.model, limits),
            waiting=waiting,
            measured=finished_rows(ledger, comparable_studies(ledger, name), plan.objectives),
            answer=callback.answer,
        )
        console.print(
            f"study {name}: {missing} of {plan.trials} trials to run, up to {share.concurrency} at a time, "
            f"each on {share.cpus_per_trial:g} CPU and {share.gpus_per_trial:g} GPU",
            highlight=False,
        )
        try:
            run_trials(searcher, callback, workload, share, ledger, scheduler=FrontStopper(searcher))
        finally:
            done = ledger.trials(name).num_rows
            callback.close("finished" if done >= plan.trials or searcher.exhausted else "interrupted")
    if callback.lost is not None:
        raise callback.lost
    return SearchResult(done=done, wanted=plan.trials, exhausted=searcher.exhausted)


def _may_try(config: NetworkConfig, space: Space, budget: Budget) -> bool:
    try:
        space.encode(config)
    except UsageError:
        return False
    return budget.fits(space.network.cost(config))


def _unfinished(ledger: Ledger, name: str, past: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Suggestions that an earlier run began and did not bring to an end, by number."""
    ended = {row["trial"] for row in past}
    said = (ledger.read_progress(name) or {}).get("unfinished", [])
    return sorted((s for s in said if s["trial"] not in ended), key=lambda suggestion: suggestion["number"])
