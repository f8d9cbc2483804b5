"""The command line: a thin skin over plain functions. Ray and Optuna are imported by the commands that search."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.console import Console
from torch import nn

from layers import OvertoneError, UsageError, compress_model
from results.confidence import study_confidence
from results.ledger import Ledger
from results.query import query as query_trials
from results.query import sql as query_sql
from results.render import render
from results.report import write_report
from results.store import Store as OpenStore
from results.summary import repeats, summarise
from results.tables import TABLES
from search import options
from search.display import confirm_line, epoch_line, export_line, next_step, show_survey, show_trials, status_line
from search.insight import insight as study_insight
from search.insight_table import show_insight
from search.progress import ALIVE_S
from spaces import Network, Space, build_model, load_weights, state_sha256
from trainers.data import DataSpec, DataWarning, load_data
from trainers.device import default_device, parse_device

if TYPE_CHECKING:
    from search.launch import Outcome

__all__ = ["app", "main"]

app = typer.Typer(
    help="Find the best trade-offs between accuracy, size and compute that a trained CNN can be compressed to.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_out = Console(width=None if sys.stdout.isatty() else 140)
_err = Console(stderr=True)

_CTRL_C = 130
"""What typer gives back where a command was interrupted."""


@app.command()
def inspect(
    model: options.Model,
    dataset: Annotated[
        str | None, typer.Option(help="Data that fix image size and classes; default: the network's usual ones.")
    ] = None,
    data_dir: options.DataDir = "data",
    stream: options.Stream = False,
    image: Annotated[str | None, typer.Option(help="Image as CHANNELSxHEIGHTxWIDTH, such as 3x224x224.")] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes.")] = None,
    space: options.SpaceFile = None,
    blocks: options.Blocks = "stage",
    epochs: options.Epochs = 5,
    schedule: options.SchedulePreset = "finetune",
    batch_size: options.BatchSize = None,
    precision: options.Precision = None,
    device: Annotated[str, typer.Option(help="Where a trial is to run: cpu, cuda or cuda:1.")] = default_device(),
    weights: Annotated[
        str | None,
        typer.Option(
            help="Trained weights, for --filters; without them it draws a random start. Weights for other images than "
            "the network's usual ones need --dataset, or --image and --classes."
        ),
    ] = None,
    filters: options.Filters = None,
    png: options.FiltersFile = None,
    pruning_rate: options.RebuiltRate = None,
    as_json: options.Json = False,
) -> None:
    """Show a network's blocks, what each can legally take, and the sizes and FLOPs in reach.

    With --dataset it also says what a trial will take in time and memory: it times a few training steps of a copy of
    the network on random images, which is all that it trains.
    With --filters and --png it draws a layer's filters and their series instead; with --pruning-rate, these filters
    rebuilt from templates.
    Example: overtone inspect --model resnet20 --weights resnet20.safetensors --filters layer1.0.conv1 --png filters.png
    """
    from search.survey import survey, usual_shape
    from trainers.estimate import estimate_trial

    if (filters is None) != (png is None):
        raise UsageError(f"filters (={filters!r}) and png (={png and str(png)!r}) must be given together.")
    if pruning_rate is not None and filters is None:
        raise UsageError(f"pruning_rate (={pruning_rate}) goes with --filters and --png.")
    settings = options.read_schedule(schedule, None, batch_size=batch_size, precision=precision)
    where = parse_device(device)
    images, validation, (shape, count) = 0, 0, usual_shape(model)
    if dataset is not None:
        data = load_data(DataSpec(name=dataset, data_dir=data_dir, stream=stream))
        images, validation, count = len(data.train), len(data.val), data.classes
        shape = data.val.image_shape
    shape, count = options.parse_image(image) if image else shape, classes or count
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = build_model(model, classes=count, channels=shape[0])
    if weights is not None:
        load_weights(built, weights, name=model)
    if filters is not None and png is not None:
        title = f"{model} {filters}{'' if weights is not None else ' (random start)'}"
        errors = _draw_filters(built, filters, png, pruning_rate, title=title)
        if weights is None:
            _err.print("No weights were given: these are the filters of a random start.", highlight=False)
        _say({"png": str(png), "layer": filters, "errors": errors}, str(png), as_json)
        return
    network = Network.of(built, shape, options.parse_granularity(blocks))
    limited = Space.default(network).restricted(options.read_space(space))
    trial = None
    if dataset is not None:
        trial = estimate_trial(
            built,
            shape,
            schedule=settings,
            epochs=epochs,
            train_images=images,
            val_images=validation,
            device=where,
            streamed=not isinstance(data.train.images, torch.Tensor),
        )
    found = survey(limited, model=model, train_images=images, epochs=epochs, trial=trial)
    if as_json:
        _print_json(found.to_json())
    else:
        show_survey(_out, found, f"{model} on {'x'.join(map(str, shape))} images, {count} classes")


@app.command()
def train(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="Safetensors file to write the weights to.")],
    dataset: options.Dataset = "digits",
    data_dir: options.DataDir = "data",
    train_limit: options.TrainLimit = None,
    validation_from: options.ValidationFrom = "train",
    stream: options.Stream = False,
    config: Annotated[
        str | None,
        typer.Option(
            help="Train a compressed network instead, from its random start: the name of a preset that `overtone "
            "inspect` lists, or a JSON file of its blocks; the config.json of an export is one."
        ),
    ] = None,
    blocks: options.Blocks = "stage",
    epochs: Annotated[int, typer.Option(help="Epochs of training.")] = 30,
    schedule: options.SchedulePreset = "baseline",
    lr: options.LearningRate = None,
    batch_size: options.BatchSize = None,
    shape: options.Shape = None,
    precision: options.Precision = None,
    setting: options.Settings = None,
    seed: options.Seed = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")] = default_device(),
    as_json: options.Json = False,
) -> None:
    """Train an uncompressed baseline, where you have no weights yet; or a compressed network from its random start.

    After each epoch it leaves a checkpoint beside the file: stopped by Ctrl-C or a crash, the same command goes on.
    Example: overtone train --model resnet8 --dataset digits --out resnet8.safetensors
    Example: overtone train --model resnet20 --dataset cifar10 --epochs 164 --schedule resnet --out resnet20.safetensors
    """
    from trainers.baseline import random_network, save_trained, train_baseline

    settings = options.read_schedule(schedule, setting, lr=lr, batch_size=batch_size, shape=shape, precision=precision)
    spec = DataSpec(
        name=dataset, data_dir=data_dir, train_limit=train_limit, validation_from=validation_from, stream=stream
    )
    if out.suffix != ".safetensors":
        raise UsageError(f"out (={str(out)!r}) must end in .safetensors.")
    where = parse_device(device)
    data = load_data(spec)
    network = random_network(model, data, seed=seed)
    layout = Network.of(network, data.val.image_shape, options.parse_granularity(blocks))
    forms: dict[str, Any] = {}
    if config is not None:
        chosen = options.read_config(config, model, layout)
        forms, network = {"config": chosen.to_json()}, compress_model(network, layout.forms(chosen))
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    if checkpoint.exists():
        _err.print(f"Going on from {checkpoint}.", highlight=False)
    curve = train_baseline(
        network,
        data,
        settings,
        epochs=epochs,
        seed=seed,
        device=where,
        on_epoch=lambda e: _err.print(epoch_line(e, epochs), highlight=False),
        checkpoint=checkpoint,
        about={"model": model, **forms},
    )
    last = curve[-1]
    about = {"dataset": dataset, "seed": seed, "epochs": epochs, "val_top1": round(last.val_top1, 6), **forms}
    save_trained(network, out, model, data, {**about, "schedule": asdict(settings)})
    checkpoint.unlink(missing_ok=True)
    found = {"out": str(out), "val_top1": last.val_top1, "val_top5": last.val_top5, "epochs": epochs}
    if config is None:
        found["weights_sha256"] = state_sha256(network)
    _say(found, f"{out}: val_top1 {last.val_top1:.4f} after {epochs} epochs", as_json)


@app.command()
def search(
    model: options.Model,
    weights: Annotated[str, typer.Option(help="Trained weights: safetensors, a state dict, or torchvision's name.")],
    study: options.Study,
    dataset: options.Dataset = "digits",
    data_dir: options.DataDir = "data",
    train_limit: options.TrainLimit = None,
    validation_from: options.ValidationFrom = "train",
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
    blocks: options.Blocks = "stage",
    minimum_templates: Annotated[int, typer.Option(help="Fewest templates a layer; 32 suits ImageNet.")] = 8,
    trials: Annotated[int, typer.Option(help="Trials to run in all.")] = 24,
    epochs: options.Epochs = 5,
    schedule: options.SchedulePreset = "finetune",
    lr: options.LearningRate = None,
    batch_size: options.BatchSize = None,
    shape: options.Shape = None,
    precision: options.Precision = None,
    distillation: Annotated[
        float | None, typer.Option(help="Share of the loss, 0 to 1, that asks for the uncompressed network's outputs.")
    ] = None,
    setting: options.Settings = None,
    start: Annotated[
        str,
        typer.Option(
            help="How compressed weights begin: calibrated (fitted to the network's outputs on unlabelled training "
            "images), least_squares (fitted to its filters) or gradient_descent (the same, as the paper finds it)."
        ),
    ] = "calibrated",
    sampler: Annotated[
        str,
        typer.Option(
            help="front (ours: costs exact, accuracy forecast, the largest expected gain in hypervolume), or Optuna's "
            "tpe, nsga2, nsga3, gp or random."
        ),
    ] = "front",
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
    from search.budget import Budget
    from search.launch import Shown, start_study
    from search.study import DEFAULT_OBJECTIVES, StudyPlan

    plan = StudyPlan(
        model=model,
        weights=str(Path(weights).resolve()) if Path(weights).exists() else weights,
        data=DataSpec(
            name=dataset, data_dir=data_dir, train_limit=train_limit, validation_from=validation_from, stream=stream
        ),
        objectives=tuple(objective or DEFAULT_OBJECTIVES),
        budget=Budget(
            max_size=options.parse_amount(max_size, name="max_size") if max_size else None,
            max_flops=options.parse_amount(max_flops, name="max_flops") if max_flops else None,
        ),
        blocks=options.parse_granularity(blocks),
        space=options.read_space(space),
        minimum_templates=minimum_templates,
        schedule=options.read_schedule(
            schedule, setting, lr=lr, batch_size=batch_size, shape=shape, precision=precision, distillation=distillation
        ),
        start=start,
        epochs=epochs,
        seed=seed,
        sampler=sampler,
        miss_rate=miss_rate or None,
        warm_start=tuple(warm_start or ()),
        keep=keep,
        trials=trials,
    )
    resources = options.read_resources(cpus_per_trial, gpus_per_trial, concurrency, address)
    ledger, shown = Ledger(OpenStore(store)), Shown(tensorboard=tensorboard, optuna_storage=optuna_storage)
    _tell_outcome(ledger, study, start_study(ledger, study, plan, resources, _err, shown), as_json)


@app.command()
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
    from search.launch import Shown, resume_study

    resources = options.read_resources(cpus_per_trial, gpus_per_trial, concurrency, address)
    ledger, shown = Ledger(OpenStore(store)), Shown(tensorboard=tensorboard, optuna_storage=optuna_storage)
    _tell_outcome(ledger, study, resume_study(ledger, study, trials, resources, _err, shown), as_json)


@app.command()
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
    from search.confirm import confirm_trials

    resources = options.read_resources(cpus_per_trial, gpus_per_trial, concurrency, address)
    ledger = Ledger(OpenStore(store))
    outcome = confirm_trials(ledger, study, pick, where=where, seeds=seeds, resources=resources, console=_err)
    front = study_confidence(ledger, study)
    if as_json:
        _print_json({**asdict(outcome), "study": study, "front": front.to_pylist()})
    else:
        show_trials(_out, query_trials(ledger, study, front=True), f"{study}: the front over its seeds")
        _out.print(confirm_line(study, outcome), markup=False, highlight=False, soft_wrap=True)
    if outcome.done < outcome.wanted:
        raise typer.Exit(1)


@app.command()
def status(study: options.Study, store: options.Store = "runs", as_json: options.Json = False) -> None:
    """Say where a study stands, from any terminal: running, done and failed trials, front, hypervolume, time left.

    Example: overtone status --study demo
    """
    ledger = Ledger(OpenStore(store))
    summary, said = summarise(ledger, study), ledger.read_progress(study) or {}
    statuses = summary.trials.column("status").to_pylist()
    silent = (datetime.now(UTC) - datetime.fromisoformat(said["updated_at"])).total_seconds() if said else 0.0
    running = said.get("state") == "running" and silent < ALIVE_S
    state = "running" if running else "finished" if len(statuses) >= summary.record["trials"] else "stopped"
    found = {
        "study": study,
        "state": state,
        "wanted": summary.record["trials"],
        **{name: statuses.count(name) for name in ("finished", "failed", "pruned")},
        "running": said.get("running", 0) if running else 0,
        "front": summary.front.num_rows,
        "confirmed": sum(row["seeds"] > 1 for row in repeats(ledger, summary).values()),
        "hypervolume": summary.hypervolume,
        "seconds_left": said.get("seconds_left") if running else None,
    }
    _say(found, status_line(found), as_json)


@app.command()
def query(
    study: options.Study,
    front: Annotated[bool, typer.Option("--front", help="Only trials that no other beats in every objective.")] = False,
    where: options.Where = None,
    sort: Annotated[str | None, typer.Option(help="Column to sort by; accuracies come highest first.")] = None,
    limit: Annotated[int | None, typer.Option(help="Show at most so many.")] = None,
    columns: Annotated[str | None, typer.Option(help="Columns to show, such as trial,val_top1,size_bytes.")] = None,
    sql: Annotated[str | None, typer.Option(help=f"One SELECT over the tables {', '.join(TABLES)}, instead.")] = None,
    format: Annotated[str, typer.Option(help="table, json, csv or parquet.")] = "table",
    store: options.Store = "runs",
) -> None:
    """Ask a study for its trials.

    Example: overtone query --study demo --front --where "size_bytes < 20000" --sort val_top1 --limit 10
    """
    ledger = Ledger(OpenStore(store))
    if sql is not None and (front or where or sort or limit is not None or columns is not None):
        raise UsageError(f"sql (={sql!r}) stands alone: front, where, sort, columns and limit belong in the SELECT.")
    names = None if columns is None else [name.strip() for name in columns.split(",") if name.strip()]
    if sql is None:
        frame = query_trials(ledger, study, front=front, where=where, sort=sort, limit=limit, columns=names)
    else:
        frame = query_sql(ledger, study, sql)
    if format != "table":
        sys.stdout.buffer.write(render(frame, format))
        sys.stdout.buffer.flush()
    elif sql is None:
        show_trials(_out, frame, f"{study}: {len(frame)} {'trials on the front' if front else 'trials'}", names)
    else:
        _out.print(frame.to_string(index=False), markup=False, highlight=False)


@app.command()
def compact(study: options.Study, store: options.Store = "runs", as_json: options.Json = False) -> None:
    """Merge the many small files of a study into few. A finished search does it itself; others may read and write.

    Example: overtone compact --study demo
    """
    done = Ledger(OpenStore(store)).compact(study).to_json()
    line = f"{study}: {done['files_before']} files became {done['files_after']}, {done['rows_written']} rows rewritten"
    _say({"study": study, **done}, line, as_json)


@app.command()
def report(
    study: options.Study,
    out: Annotated[Path, typer.Option(help="File to write: .html (one file, opens offline), .png or .svg.")],
    store: options.Store = "runs",
) -> None:
    """Write the study's front as a page to look at, or as a picture.

    Example: overtone report --study demo --out report.html
    """
    ledger = Ledger(OpenStore(store))
    path = write_report(ledger, study, out, insight=study_insight(ledger, study))
    _out.print(f"{path}", highlight=False, soft_wrap=True)


@app.command()
def insight(
    study: options.Study,
    limit: Annotated[int, typer.Option(help="Show the most important knobs, at most so many.")] = 8,
    store: options.Store = "runs",
    as_json: options.Json = False,
) -> None:
    """Say which knobs matter, what their values go with, and what the front's members have in common.

    Example: overtone insight --study demo
    """
    if limit < 1:
        raise UsageError(f"limit (={limit}) must be at least 1.")
    found = study_insight(Ledger(OpenStore(store)), study)
    if as_json:
        _print_json(found)
    else:
        show_insight(_out, found, study, limit)


@app.command()
def export(
    study: options.Study,
    out: Annotated[Path, typer.Option(help="New folder to write to.")],
    pick: Annotated[str, typer.Option(help="best (highest val_top1), knee (of the front), or a trial's id.")] = "knee",
    where: options.Where = None,
    format: Annotated[str, typer.Option(help="safetensors (packed), onnx or pt2.")] = "safetensors",
    rerun: options.Rerun = False,
    device: Annotated[str, typer.Option(help="Where --rerun trains: cpu, cuda or cuda:1.")] = default_device(),
    store: options.Store = "runs",
    as_json: options.Json = False,
) -> None:
    """Write a trial's model to a folder, after proving that the file gives the trial's predictions.

    The file is read in a process of its own; onnx and pt2 may say another class for up to 0.5 % of validation images.
    Example: overtone export --study demo --pick best --where "size_bytes < 20000" --out model
    """
    from search.verify import export_trial

    card = export_trial(
        Ledger(OpenStore(store)),
        study,
        pick,
        where=where,
        format=format,
        out=out,
        rerun_on=parse_device(device) if rerun else None,
        say=lambda line: _err.print(line, markup=False, highlight=False, soft_wrap=True),
    )
    _say({"out": str(out), **card}, export_line(out, card), as_json)


def main() -> None:
    """Run the command line: 0 done, 1 failed or stopped early, 2 wrong use."""
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", DataWarning)
    warnings.showwarning = lambda message, *_, **__: print(f"overtone: {message}", file=sys.stderr)
    try:
        code = app(arguments, standalone_mode=False)
    except UsageError as error:
        return _fail(str(error), 2)
    except OvertoneError as error:
        return _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("Interrupted.", 1)
    except BrokenPipeError:
        return 1
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's own errors; their class is private to it
            raise
        message = error.format_message()
        if not arguments:
            print(message)
            return 2
        return _fail(message, 2)
    if code == _CTRL_C:
        return _fail("Interrupted.", 1)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    text = " ".join(message.split())
    print(f"overtone: {text}", file=sys.stderr)
    return code


def _say(found: dict[str, Any], line: str, as_json: bool) -> None:
    if as_json:
        _print_json(found)
    else:
        _out.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_json(found: dict[str, Any]) -> None:
    print(json.dumps(found, indent=2, default=str))


def _draw_filters(network: nn.Module, layer: str, png: Path, rate: float | None, *, title: str) -> Any:
    """Draw a layer's filters; their mean errors."""
    from results.filters import convolution, draw_filters, mean_errors
    from results.rebuilt import draw_rebuilt, rebuilt_errors

    found = convolution(network, layer)
    if rate is None:
        draw_filters(found, png, name=title)
        return mean_errors(found, name=title)
    draw_rebuilt(found, png, rate, name=title)
    return rebuilt_errors(found, rate, name=title)


def _tell_outcome(ledger: Ledger, study: str, outcome: Outcome, as_json: bool) -> None:
    """Print the front and how to go on; a study that was stopped early exits with 1."""
    summary = summarise(ledger, study)
    found = {**asdict(outcome), "study": study, "front": summary.front.num_rows, "hypervolume": summary.hypervolume}
    if as_json:
        _print_json(found)
    else:
        show_trials(_out, query_trials(ledger, study, front=True), f"{study}: the front of {outcome.done} trials")
        line = f"hypervolume {summary.hypervolume:.4f}; {next_step(study, ledger.store.label, outcome)}"
        _out.print(line, markup=False, highlight=False, soft_wrap=True)
    if outcome.done < outcome.wanted and not outcome.exhausted:
        raise typer.Exit(1)
