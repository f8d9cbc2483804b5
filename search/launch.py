"""Run a study on Ray Tune: new, to its end after a stop, or further than was first asked."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console
from torch import nn

from layers import OvertoneError, UsageError
from results.ledger import Ledger
from results.objectives import parse_objectives
from results.schema import TrialStatus
from search.cluster import Resources, connected
from search.progress import Progress
from search.record import network_config
from search.recorder import Recorder, StopWhenLost
from search.sampler import ConfigSampler
from search.searcher import FrontSearcher
from search.study import StudyPlan
from search.trainable import TrialActor
from spaces import Network, NetworkConfig, Space, state_sha256
from trainers.data import Data, load_data
from trainers.evaluate import evaluate
from trainers.trial import load_baseline

__all__ = ["Outcome", "Subject", "make_space", "resume_study", "start_study"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run of a study ended."""

    done: int
    """Trials in the ledger."""
    wanted: int
    exhausted: bool
    """Whether no new config was found in the space."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What all trials of a study share, loaded."""

    data: Data
    baseline: nn.Module
    network: Network
    weights_sha256: str

    @classmethod
    def of(cls, plan: StudyPlan) -> Subject:
        """Load the data and the trained network of a plan."""
        data = load_data(plan.data)
        baseline, network = load_baseline(plan.model, plan.weights, data, plan.blocks)
        return cls(data=data, baseline=baseline, network=network, weights_sha256=state_sha256(baseline))

    def identity(self) -> dict[str, str]:
        """Content hashes that a study's record keeps."""
        return {"weights_sha256": self.weights_sha256, "data_fingerprint": self.data.fingerprint}

    def reference(self) -> dict[str, Any]:
        """What the uncompressed network measures and costs, untouched."""
        found = evaluate(self.baseline, self.data.val, mean=self.data.mean, std=self.data.std, device="cpu")
        cost = self.network.cost(NetworkConfig())
        return {
            "val_top1": found.top1,
            "val_images": found.n,
            "parameters": cost.parameters,
            "size_bytes": cost.size_bytes,
            "macs": cost.macs,
            "flops": cost.flops,
        }


def make_space(plan: StudyPlan, network: Network) -> Space:
    """The search space of a plan."""
    return Space.default(network, plan.minimum_templates).restricted(plan.space)


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
        about = {"dataset": plan.data.name, "uncompressed": subject.reference()}
        record = {**plan.to_record(), **subject.identity(), **about}
        with connected(resources.address):
            resources.resolved()
            ledger.create_study(name, record)
    return _run(ledger, name, plan, subject, searcher, resources, console)


def resume_study(ledger: Ledger, name: str, more: int | None, resources: Resources, console: Console) -> Outcome:
    """Bring a study to its end, or run `more` trials than it has asked for so far."""
    if more is not None and more < 1:
        raise UsageError(f"trials (={more}) must be at least 1 more.")
    record = ledger.study(name)
    plan = StudyPlan.from_record(record)
    subject = Subject.of(plan)
    _check_same(name, record, {**plan.to_record(), **subject.identity()})
    if more is not None:
        wanted = max(plan.trials, ledger.trials(name).num_rows) + more
        plan = StudyPlan.from_record(ledger.update_study(name, {"trials": wanted}))
    return _run(ledger, name, plan, subject, _searcher(plan, subject), resources, console)


def _check_same(name: str, record: dict[str, Any], given: dict[str, Any]) -> None:
    for key, value in given.items():
        if key != "trials" and record.get(key) != value:
            raise UsageError(
                f"study {name!r} exists with {key} {record.get(key)!r}, {value!r} was given; take another name."
            )


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
    with connected(resources.address), Progress(console) as progress, _scratch(ledger, name) as folder:
        recorder = Recorder(ledger, name, subject.network, progress, wanted=plan.trials)
        share = resources.resolved()
        console.print(
            f"study {name}: {missing} of {plan.trials} trials to run, up to {share.concurrency} at a time, "
            f"each on {share.cpus_per_trial:g} CPU and {share.gpus_per_trial:g} GPU",
            highlight=False,
        )
        try:
            _tune(searcher, recorder, subject, share, folder, missing)
        finally:
            done = ledger.trials(name).num_rows
            recorder.close("finished" if done >= plan.trials or searcher.exhausted else "interrupted")
    if recorder.lost is not None:
        raise recorder.lost
    return Outcome(done=done, wanted=plan.trials, exhausted=searcher.exhausted)


def _tune(
    searcher: FrontSearcher, recorder: Recorder, subject: Subject, resources: Resources, folder: str, trials: int
) -> None:
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    actor = tune.with_parameters(TrialActor, data=subject.data, baseline=subject.baseline, network=subject.network)
    need = {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial or 0}
    tuner = tune.Tuner(
        tune.with_resources(actor, need),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=trials,
            max_concurrent_trials=resources.concurrency,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=folder,
            callbacks=[recorder],
            stop=StopWhenLost(recorder),
            failure_config=tune.FailureConfig(max_failures=1),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            verbose=0,
        ),
    )
    tuner.fit()


@contextmanager
def _scratch(ledger: Ledger, name: str) -> Iterator[str]:
    """Where Ray Tune keeps checkpoints until they are in the ledger: beside it, so that all nodes reach it."""
    root = ledger.store.local_root
    if root is None:
        yield f"{ledger.store.uri}/tune/{name}"
        return
    try:
        (root / "tune").mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root / "tune")).resolve()
    except OSError as error:
        raise OvertoneError(f"Store {ledger.store.label!r} cannot be written; {error}.") from error
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
