"""Run a study on Ray Tune: new, to its end after a stop, or further than was first asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console

from layers import UsageError
from results.ledger import Ledger
from results.objectives import parse_objectives
from results.schema import TrialStatus
from search.cluster import Resources, connected
from search.engine import run_trials
from search.progress import Progress
from search.record import network_config
from search.recorder import Recorder
from search.sampler import ConfigSampler
from search.searcher import FrontSearcher
from search.study import StudyPlan
from search.subject import Subject, make_space

__all__ = ["Outcome", "open_study", "resume_study", "start_study"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run of a study ended."""

    done: int
    """Trials in the ledger."""
    wanted: int
    exhausted: bool
    """Whether no new config was found in the space."""


def start_study(ledger: Ledger, name: str, plan: StudyPlan, resources: Resources, console: Console) -> Outcome:
    """Begin a study, or go on with one of the same name and the same settings."""
    parse_objectives(plan.objectives)
    subject = Subject.of(plan)
    searcher = _searcher(plan, subject)
    if name in ledger.studies():
        record = ledger.study(name)
        _check_same(name, record, {**plan.to_record(), **subject.identity()})
        plan = StudyPlan.from_record(record)
    else:
        choices = make_space(plan, subject.network).choices
        about = {"dataset": plan.data.name, "uncompressed": subject.reference(), "choices": choices}
        record = {**plan.to_record(), **subject.identity(), **about}
        with connected(resources.address):
            resources.resolved()
            ledger.create_study(name, record)
    return _run(ledger, name, plan, subject, searcher, resources, console)


def resume_study(ledger: Ledger, name: str, more: int | None, resources: Resources, console: Console) -> Outcome:
    """Bring a study to its end, or run `more` trials than it has asked for so far."""
    if more is not None and more < 1:
        raise UsageError(f"trials (={more}) must be at least 1 more.")
    plan, subject = open_study(ledger, name)
    if more is not None:
        wanted = max(plan.trials, ledger.trials(name).num_rows) + more
        plan = StudyPlan.from_record(ledger.update_study(name, {"trials": wanted}))
    return _run(ledger, name, plan, subject, _searcher(plan, subject), resources, console)


def open_study(ledger: Ledger, name: str) -> tuple[StudyPlan, Subject]:
    """A study's plan, and its data and network loaded; `UsageError` where those are not the ones it was begun with."""
    record = ledger.study(name)
    plan = StudyPlan.from_record(record)
    subject = Subject.of(plan)
    _check_same(name, record, {**plan.to_record(), **subject.identity()})
    return plan, subject


def _check_same(name: str, record: dict[str, Any], given: dict[str, Any]) -> None:
    undecided = {"keep"} - record.keys()
    record = {
        **record,
        **StudyPlan.from_record(record).to_record(),
    }  # settings newer than the study are at their default
    for key, value in given.items():
        known = record.get(key)
        if key == "trials" or known == value or key in undecided:
            continue
        if isinstance(known, dict) and isinstance(value, dict):
            key, known, value = next(
                (f"{key}.{part}", known.get(part), value.get(part))
                for part in {**known, **value}
                if known.get(part) != value.get(part)
            )
        raise UsageError(f"study {name!r} exists with {key} {known!r}, {value!r} was given; take another name.")


def _searcher(plan: StudyPlan, subject: Subject) -> FrontSearcher:
    space = make_space(plan, subject.network)
    objectives = parse_objectives(plan.objectives)
    sampler = ConfigSampler(space, objectives, sampler=plan.sampler, seed=plan.seed)
    identity = subject.identity()
    return FrontSearcher(
        space,
        sampler,
        budget=plan.budget,
        objectives=objectives,
        make_spec=lambda config: plan.spec(config, **identity),
        seed=plan.seed,
    )


def _run(
    ledger: Ledger,
    name: str,
    plan: StudyPlan,
    subject: Subject,
    searcher: FrontSearcher,
    resources: Resources,
    console: Console,
) -> Outcome:
    past = ledger.trials(name).to_pylist()
    for row in past:
        finished = row["status"] == TrialStatus.FINISHED
        searcher.know(network_config(row), row["number"], row if finished else None)
    missing = plan.trials - len(past)
    if missing <= 0:
        return Outcome(done=len(past), wanted=plan.trials, exhausted=False)
    searcher.begin(missing)
    with connected(resources.address), Progress(console) as progress:
        recorder = Recorder(ledger, name, subject.network, progress, wanted=plan.trials, keep=plan.keep)
        share = resources.resolved()
        console.print(
            f"study {name}: {missing} of {plan.trials} trials to run, up to {share.concurrency} at a time, "
            f"each on {share.cpus_per_trial:g} CPU and {share.gpus_per_trial:g} GPU",
            highlight=False,
        )
        try:
            run_trials(searcher, recorder, subject, share, ledger, trials=missing)
        finally:
            done = ledger.trials(name).num_rows
            recorder.close("finished" if done >= plan.trials or searcher.exhausted else "interrupted")
    if recorder.lost is not None:
        raise recorder.lost
    return Outcome(done=done, wanted=plan.trials, exhausted=searcher.exhausted)
