"""Begin a study, and run it on Ray Tune: for the first time, to its end after a stop, or further than before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from threadpoolctl import threadpool_limits

from layers import compress_model
from results.analysis.effects import EffectModel
from search.optimize.candidates import Candidates
from search.optimize.forecast import Forecast
from search.optimize.initial import first_configs
from search.optimize.pruner import ConformalPruner
from search.optimize.sampler import ConfigSampler, check_sampler
from search.optimize.searcher import FrontSearcher
from search.runner.cluster import Resources, connected
from search.runner.dashboards import DashboardOptions, Observer
from search.runner.effects import ensure_effects
from search.runner.engine import run_trials
from search.runner.gpu_probe import gpu_share
from search.runner.progress import Progress, decoding_bar
from search.runner.run_lock import Claim
from search.runner.scheduler import FrontStopper
from search.runner.study_callback import StudyCallback
from search.study.budget import extremes, may_try
from search.study.objects import Objects
from search.study.places import RECORDED, Places
from search.study.plan import OF_TRIALS, StudyPlan, check_same_settings
from search.study.record import network_config
from search.study.reuse import comparable_studies, finished_rows, warm_start_rows
from search.study.study_ledger import ONLY_SKETCHED, StudyLedger
from search.study.workload import Workload, make_space
from spaces import NetworkConfig, Space
from trainers.runtime.runtimes import DEFAULT_THREADS
from trainers.runtime.sessions import open_session

__all__ = ["SearchResult", "create_study", "make_searcher", "open_workload", "run_study"]

_NO_DASHBOARDS = DashboardOptions()


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """How a run of a study ended."""

    done: int
    """Trials in the ledger."""
    wanted: int
    """Trials in all, once the study is finished."""
    exhausted: bool
    """Whether no new config was left in the space."""


@dataclass(frozen=True, kw_only=True)
class _Setup:
    """A study that is ready to run: its settings checked, its data and network loaded."""

    study: StudyLedger
    workload: Workload
    space: Space
    limits: tuple[NetworkConfig, NetworkConfig]
    """Of the configs within the budget, that of fewest bytes and that of least compute."""

    @classmethod
    def of(cls, study: StudyLedger, plan: StudyPlan, workload: Workload) -> _Setup:
        """Make the search space of a plan; raise `UsageError` if no config of it meets the budget."""
        space = make_space(plan, workload.network)
        return cls(study=study, workload=workload, space=space, limits=extremes(space, plan.budget))


def create_study(study: StudyLedger, plan: StudyPlan, workload: Workload, *, sketch: bool = False) -> None:
    """Write the record of a new study, and its first rows; a study of the same name must have the same settings.

    With `sketch` they may differ in those that only trials depend on. If nothing but that has begun the study, they are
    those of the first search. `plan` is as `StudyPlan.located` gives it, `workload` what it loads. Raises `UsageError`
    if no config of its space meets the budget, if the study exists with other settings, or if the network cannot be
    compressed truly.
    """
    check_sampler(plan.sampler)
    plan.check_runtime()
    plan = workload.resolved(plan)
    space = make_space(plan, workload.network)
    limits = extremes(space, plan.budget)
    settings = {**plan.to_record(), **workload.identity()}
    record = study.record() if study.exists() else None
    if record is not None:
        only_sketched = record.get(ONLY_SKETCHED, False)
        check_same_settings(record, settings, but=OF_TRIALS if sketch or only_sketched else ())
        if sketch or not only_sketched:
            return
    workload.check_fidelity(plan.model, limits)
    if plan.times_files:
        _try_file(workload, plan)

    def spelled(config: NetworkConfig) -> NetworkConfig | None:
        return space.spelled(config) if may_try(config, space, plan.budget) else None

    rows = warm_start_rows(study, settings, spelled, plan.place())
    about = {"dataset": plan.data.label, "uncompressed": workload.reference(), "choices": space.choices}
    if workload.network.uncounted:
        about["uncounted"] = list(workload.network.uncounted)
    begun: dict[str, Any] = {ONLY_SKETCHED: sketch, "warm_started": len(rows), "trials": plan.trials + len(rows)}
    if plan.times:  # each of them must be timed, or have been timed where trials run
        begun["warm_trials"], rows = [row.trial for row in rows], []
    if record is None:
        study.create({**settings, **about, **begun}, rows)
    else:
        study.begin({**{name: settings[name] for name in OF_TRIALS}, **begun}, rows)


def open_workload(study: StudyLedger, console: Console, objects: Objects, places: Places = RECORDED) -> Workload:
    """Load a study's data and network, those of `objects` among them, from `places`.

    Raises `UsageError` if data or weights are not those that it was started with.
    """
    record = study.record()
    plan = StudyPlan.from_record(record)
    with decoding_bar(console) as on_progress, places.hinted(plan.weights, plan.data):
        workload = Workload.load(places.of_plan(plan), on_progress, objects)
    check_same_settings(record, workload.identity())
    return workload


def run_study(
    study: StudyLedger,
    workload: Workload,
    trials: int,
    resources: Resources,
    console: Console,
    claim: Claim,
    dashboards: DashboardOptions = _NO_DASHBOARDS,
) -> SearchResult:
    """Run a study, as `open_workload` loads it and whose `claim` is held, until it has this many trials in all."""
    plan = StudyPlan.from_record(study.record())
    plan.check_runtime()
    setup = _Setup.of(study, plan, workload)
    opened = dashboards.open(study, setup.space)
    if trials == plan.trials:
        return _run(setup, resources, console, claim, opened)
    with connected(resources.address):
        resources.resolved()
        study.update({"trials": trials})
        return _run(setup, resources, console, claim, opened)


def _run(
    setup: _Setup, resources: Resources, console: Console, claim: Claim, boards: Sequence[Observer]
) -> SearchResult:
    """Run the trials that the study's record asks for and its ledger lacks."""
    study = setup.study
    plan = StudyPlan.from_record(study.record())
    past = study.trials().to_pylist()
    missing = plan.trials - len(past)
    if missing <= 0:
        return SearchResult(done=len(past), wanted=plan.trials, exhausted=False)
    with connected(resources.address), Progress(console) as progress, threadpool_limits(1, user_api="blas"):
        resources = resources.resolved(lambda: gpu_share(setup.workload, plan.recipe, console))
        observers = [progress, *boards]
        gpus = float(resources.gpus_per_trial or 0)
        try:
            forecast = _forecast(setup, plan, resources, console, claim)
        except KeyboardInterrupt:  # what was measured is kept
            return SearchResult(done=len(past), wanted=plan.trials, exhausted=False)
        searcher = make_searcher(plan, setup.space, setup.limits, setup.workload, past, forecast)
        callback = _make_callback(setup, plan, searcher, observers, claim, gpus=gpus)
        place = plan.place(cpus=resources.cpus_per_trial, gpu=gpus > 0)
        callback.measured = finished_rows(comparable_studies(study), plan.parsed_objectives(), place)
        searcher.begin(
            missing,
            first=first_configs(
                setup.space,
                plan.model,
                setup.limits,
                forecast=forecast is not None,
                sketches=map(network_config, study.sketches().to_pylist()),
            ),
            unfinished=_unfinished(study, past, _warm_trials(setup, plan, callback.measured)),
            measured=callback.measured,
            on_reuse=callback.reuse,
            timed=plan.times,
        )
        if study.only_sketched():
            study.update({ONLY_SKETCHED: False})
        line = f"study {study.name}: {missing} of {plan.trials} trials to run, {resources.line()}"
        console.print(line, highlight=False)
        try:
            run_trials(searcher, callback, setup.workload, resources, console, scheduler=FrontStopper(searcher))
        finally:
            done = study.trials(["trial"]).num_rows
            callback.close("finished" if done >= plan.trials or searcher.exhausted else "interrupted")
    if callback.failure is not None:
        raise callback.failure
    return SearchResult(done=done, wanted=plan.trials, exhausted=searcher.exhausted)


def _forecast(setup: _Setup, plan: StudyPlan, resources: Resources, console: Console, claim: Claim) -> Forecast | None:
    """Return what the effects of single blocks forecast, measured now if they are not known; None for other samplers.

    None too where nothing can be measured at a price that is worth it.
    """
    if plan.sampler != "ehvi":
        return None
    effects = ensure_effects(setup.study, setup.workload, setup.space, plan, resources, console, claim.ensure_held)
    if effects is None:
        return None
    model = EffectModel.fit(effects, setup.workload.network, plan.minimum_templates)
    return Forecast.of(model, setup.study.record()["uncompressed"]["score"])


def make_searcher(
    plan: StudyPlan,
    space: Space,
    limits: tuple[NetworkConfig, NetworkConfig],
    workload: Workload,
    past: Iterable[Mapping[str, Any]],
    forecast: Forecast | None = None,
) -> FrontSearcher:
    """Return the searcher of a plan in its space, which has learned from the study's past rows.

    `limits` are the space's extremes within the budget. The `forecast` is what the effects of single blocks say, if
    they are known.
    """
    candidates = Candidates(space, forecast)
    objectives = plan.parsed_objectives()
    sampler = ConfigSampler(
        candidates,
        objectives,
        sampler=plan.sampler,
        seed=plan.seed,
        budget=plan.budget,
        images=len(workload.data.val),
    )
    hashes = workload.hashes()
    searcher = FrontSearcher(
        candidates,
        sampler,
        ConformalPruner(objectives, miss_rate=plan.miss_rate, forecast=forecast),
        budget=plan.budget,
        cheapest=limits[0],
        objectives=objectives,
        make_spec=lambda config: plan.spec(config, **hashes),
        seed=plan.seed,
    )
    for row in past:
        searcher.add_row(row)
    return searcher


def _make_callback(
    setup: _Setup,
    plan: StudyPlan,
    searcher: FrontSearcher,
    observers: Sequence[Observer],
    claim: Claim,
    *,
    gpus: float,
) -> StudyCallback:
    return StudyCallback(
        setup.study,
        setup.workload.network,
        observers,
        wanted=plan.trials,
        keep=plan.keep,
        gpus=gpus,
        stopped=searcher.stopped,
        retried=searcher.retries.retried,
        ensure_held=claim.ensure_held,
    )


def _unfinished(
    study: StudyLedger, past: Iterable[Mapping[str, Any]], first: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the suggestions that an earlier run began and did not bring to an end, and those to begin with.

    They are sorted by number.
    """
    ended = {row["trial"] for row in past}
    begun = {suggestion["trial"]: suggestion for suggestion in (*first, *study.read_progress().get("unfinished", []))}
    left = (suggestion for trial, suggestion in begun.items() if trial not in ended)
    return sorted(left, key=lambda suggestion: int(suggestion["number"]))


def _warm_trials(setup: _Setup, plan: StudyPlan, measured: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the trials of a warm start whose latency is taken before the study counts them among its own."""
    rows = {digest[:10]: row for digest, row in measured.items()}
    hashes = setup.workload.hashes()

    def config(trial: str) -> NetworkConfig:
        return setup.space.spelled(network_config(rows[trial]))

    return [
        {"number": number, "trial": trial, "spec": plan.spec(config(trial), **hashes).to_json()}
        for number, trial in enumerate(setup.study.record().get("warm_trials", []))
        if trial in rows
    ]


def _try_file(workload: Workload, plan: StudyPlan) -> None:
    """Open the uncompressed network's file where trials are timed, so that what cannot be done fails before them.

    Raises `OvertoneError` if the network cannot be written, or the runtime cannot run it.
    """
    forms = workload.network.forms(NetworkConfig())
    content = workload.skeleton.file(compress_model(workload.baseline, forms))
    open_session(Path("model.onnx"), plan.runtime, threads=plan.latency_threads or DEFAULT_THREADS, content=content)
