"""Commands that run a study's trials, and say how far it is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from results.analysis.confidence import study_confidence
from results.analysis.summary import confidence_by_trial, summarize
from results.ledger.ledger import Ledger
from results.ledger.store import Store as OpenStore
from results.queries.query import query as query_trials
from results.schema import TrialStatus
from search.commands import options
from search.commands.display import (
    confirm_line,
    err_console,
    next_step,
    out_console,
    print_json,
    say,
    show_trials,
    status_line,
)
from search.runner.run_lock import is_running
from trainers.data import DataSpec

if TYPE_CHECKING:
    from search.runner.launch import SearchResult

__all__ = ["confirm", "resume", "search", "status"]


def search(
    model: options.Model,
    weights: Annotated[str, typer.Option(help="Trained weights: safetensors, a state dict, or torchvision's name.")],
    study: options.Study,
    dataset: options.Dataset = "digits",
    data_dir: options.DataDir = "data",
    train_limit: options.TrainLimit = None,
    val_from: options.ValidationFrom = "train",
    stream: options.Stream = False,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            help="Repeat for each: val_top1, size_bytes, flops, latency_ms, latency_b64_ms. Default: first three."
        ),
    ] = None,
    max_size: Annotated[str | None, typer.Option(help="Try no network above this size, such as 40kB.")] = None,
    max_flops: Annotated[str | None, typer.Option(help="Try no network above this compute, such as 5M.")] = None,
    space: options.SpaceFile = None,
    granularity: options.Granularity = "stage",
    minimum_templates: Annotated[int, typer.Option(help="Fewest templates a layer; 32 suits ImageNet.")] = 8,
    trials: Annotated[int, typer.Option(help="Trials to run in all.")] = 24,
    epochs: options.Epochs = 5,
    recipe: options.Recipe = "finetune",
    lr: options.LearningRate = None,
    batch_size: options.BatchSize = None,
    lr_schedule: options.LrSchedule = None,
    precision: options.Precision = None,
    distillation: options.Distillation = None,
    setting: options.Settings = None,
    init: Annotated[
        str,
        typer.Option(
            help="How compressed weights begin: calibrated (fitted to the network's outputs on unlabeled training "
            "images), least_squares (fitted to its filters) or gradient_descent (the same, as the paper finds it)."
        ),
    ] = "calibrated",
    saliency: options.Saliency = "magnitude",
    sampler: Annotated[
        str,
        typer.Option(
            help="ehvi (ours: costs exact, accuracy forecast, the largest expected gain in hypervolume), or Optuna's "
            "tpe, nsga2, nsga3, gp or random."
        ),
    ] = "ehvi",
    miss_rate: Annotated[
        float,
        typer.Option(
            help="Trials are stopped once they cannot enter the front; up to this share of them may end above what was "
            "forecast at best. 0 runs every trial to its end."
        ),
    ] = 0.1,
    warm_start: Annotated[
        list[str] | None,
        typer.Option(
            help="Repeat for each: another study of the same network, data and schedule, whose finished trials this "
            "one begins with.",
            show_default=False,
        ),
    ] = None,
    keep: options.Keep = "front",
    seed: options.Seed = 0,
    store: options.Store = "runs",
    gpus_per_trial: options.GpusPerTrial = None,
    cpus_per_trial: options.CpusPerTrial = 1,
    concurrency: options.Concurrency = None,
    address: options.Address = None,
    tensorboard: options.TensorBoardFolder = None,
    optuna_storage: options.OptunaStorage = None,
    as_json: options.Json = False,
) -> None:
    """Search a network's compressed forms on Ray, and keep every trial and the front in the store.

    Stopped by Ctrl-C or a crash, the same command or `overtone resume` goes on.

    Example: overtone search --model resnet8 --weights resnet8.safetensors --dataset digits --study demo --trials 24
    """
    from search.runner.launch import DashboardOptions, start_study
    from search.study.budget import Budget
    from search.study.plan import DEFAULT_OBJECTIVES, StudyPlan

    plan = StudyPlan(
        model=model,
        weights=str(Path(weights).resolve()) if Path(weights).exists() else weights,
        data=DataSpec(name=dataset, data_dir=data_dir, train_limit=train_limit, val_from=val_from, stream=stream),
        objectives=tuple(objective or DEFAULT_OBJECTIVES),
        budget=Budget(
            max_size=options.parse_amount(max_size, name="max_size") if max_size else None,
            max_flops=options.parse_amount(max_flops, name="max_flops") if max_flops else None,
        ),
        granularity=options.parse_granularity(granularity),
        space=options.read_space(space),
        minimum_templates=minimum_templates,
        recipe=options.read_recipe(
            recipe,
            setting,
            epochs=epochs,
            lr=lr,
            batch_size=batch_size,
            lr_schedule=lr_schedule,
            precision=precision,
            distillation=distillation,
        ),
        init=init,
        saliency=saliency,
        epochs=epochs,
        seed=seed,
        sampler=sampler,
        miss_rate=miss_rate or None,
        warm_start=tuple(warm_start or ()),
        keep=keep,
        trials=trials,
    )
    resources = options.read_resources(cpus_per_trial, gpus_per_trial, concurrency, address)
    ledger, dashboards = (
        Ledger(OpenStore(store)),
        DashboardOptions(tensorboard=tensorboard, optuna_storage=optuna_storage),
    )
    _tell_outcome(ledger, study, start_study(ledger, study, plan, resources, err_console, dashboards), as_json)


def resume(
    study: options.Study,
    trials: Annotated[int | None, typer.Option(help="Run this many trials more than asked for so far.")] = None,
    store: options.Store = "runs",
    gpus_per_trial: options.GpusPerTrial = None,
    cpus_per_trial: options.CpusPerTrial = 1,
    concurrency: options.Concurrency = None,
    address: options.Address = None,
    tensorboard: options.TensorBoardFolder = None,
    optuna_storage: options.OptunaStorage = None,
    as_json: options.Json = False,
) -> None:
    """Go on with a study that stopped, or run more trials than it has asked for.

    Example: overtone resume --study demo --trials 12
    """
    from search.runner.launch import DashboardOptions, resume_study

    resources = options.read_resources(cpus_per_trial, gpus_per_trial, concurrency, address)
    ledger, dashboards = (
        Ledger(OpenStore(store)),
        DashboardOptions(tensorboard=tensorboard, optuna_storage=optuna_storage),
    )
    _tell_outcome(ledger, study, resume_study(ledger, study, trials, resources, err_console, dashboards), as_json)


def confirm(
    study: options.Study,
    seeds: Annotated[int, typer.Option(help="Further seeds over which each trial is run again.")] = 3,
    pick: Annotated[
        str, typer.Option(help="front (all of it), best (highest val_top1), knee (of the front), or a trial's id.")
    ] = "front",
    where: options.Where = None,
    store: options.Store = "runs",
    gpus_per_trial: options.GpusPerTrial = None,
    cpus_per_trial: options.CpusPerTrial = 1,
    concurrency: options.Concurrency = None,
    address: options.Address = None,
    as_json: options.Json = False,
) -> None:
    """Run members of the front again with other seeds, so that their accuracies carry an interval.

    Stopped by Ctrl-C or a crash, the same command goes on. The search itself is not touched.

    Example: overtone confirm --study demo --seeds 3 --where "size_bytes < 20000"
    """
    from search.runner.confirm import confirm_trials

    resources = options.read_resources(cpus_per_trial, gpus_per_trial, concurrency, address)
    ledger = Ledger(OpenStore(store))
    outcome = confirm_trials(ledger, study, pick, where=where, seeds=seeds, resources=resources, console=err_console)
    front = study_confidence(ledger, study)
    if as_json:
        print_json({**asdict(outcome), "study": study, "front": front.to_pylist()})
    else:
        show_trials(out_console, query_trials(ledger, study, front=True), f"{study}: the front over its seeds")
        out_console.print(confirm_line(study, outcome), markup=False, highlight=False, soft_wrap=True)
    if outcome.done < outcome.wanted:
        raise typer.Exit(1)


def status(study: options.Study, store: options.Store = "runs", as_json: options.Json = False) -> None:
    """Say where a study stands, from any terminal: running, done and failed trials, front, hypervolume, time left.

    Example: overtone status --study demo
    """
    ledger = Ledger(OpenStore(store))
    summary, said = summarize(ledger, study), ledger.read_progress(study) or {}
    statuses = summary.trials.column("status").to_pylist()
    running = is_running(said)
    state = "running" if running else "finished" if len(statuses) >= summary.record["trials"] else "stopped"
    found = {
        "study": study,
        "state": state,
        "wanted": summary.record["trials"],
        **{name: statuses.count(name) for name in ("finished", "failed", "pruned")},
        "running": said.get("running", 0) if running else 0,
        "front": summary.front.num_rows,
        "confirmed": sum(row["seeds"] > 1 for row in confidence_by_trial(ledger, summary).values()),
        "hypervolume": summary.hypervolume,
        "seconds_left": said.get("seconds_left") if running else None,
    }
    say(found, status_line(found), as_json)


def _tell_outcome(ledger: Ledger, study: str, outcome: SearchResult, as_json: bool) -> None:
    """Print the front and how to go on; a study that was stopped early, or has failed trials alone, exits with 1."""
    summary = summarize(ledger, study)
    found = {**asdict(outcome), "study": study, "front": summary.front.num_rows, "hypervolume": summary.hypervolume}
    if as_json:
        print_json(found)
    else:
        show_trials(
            out_console, query_trials(ledger, study, front=True), f"{study}: the front of {outcome.done} trials"
        )
        line = f"hypervolume {summary.hypervolume:.4f}; {next_step(study, ledger.store.label, outcome)}"
        out_console.print(line, markup=False, highlight=False, soft_wrap=True)
    failed = summary.trials.column("status").to_pylist().count(TrialStatus.FAILED)
    if failed:
        err_console.print(f"{failed} of {outcome.done} trials failed.", highlight=False)
    if (failed and failed == outcome.done) or (outcome.done < outcome.wanted and not outcome.exhausted):
        raise typer.Exit(1)
