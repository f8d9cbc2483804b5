"""Commands about a network, before any search: look at it, train it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from layers import UsageError, compress_model
from search.commands import options
from search.commands.display import err_console, out_console, print_json, say, show_survey
from search.runner.progress import decoding_bar, epoch_line
from spaces import Network, Space, build_model, load_weights, state_sha256
from spaces.global_pruning import global_rates, has_global_rate, resolve_global_rates
from spaces.models import check_outputs
from trainers.data import Data, DataSpec, load_data
from trainers.runtime.device import default_device, keep_freed_memory, parse_device
from trainers.start.saliency import SALIENCIES, filter_saliency

__all__ = ["inspect", "train"]


def inspect(
    model: options.Model,
    dataset: Annotated[
        str | None, typer.Option(help="Data that fix image size and classes; default: the network's usual ones.")
    ] = None,
    data_dir: options.DataDir = "data",
    stream: options.Stream = False,
    image: Annotated[str | None, typer.Option(help="Image as CHANNELSxHEIGHTxWIDTH, such as 3x224x224.")] = None,
    classes: Annotated[int | None, typer.Option(min=1, max=10**6, help="Number of classes.")] = None,
    space: options.SpaceFile = None,
    granularity: options.Granularity = "stage",
    epochs: options.Epochs = 5,
    recipe: options.Recipe = "finetune",
    batch_size: options.BatchSize = None,
    precision: options.Precision = None,
    distillation: options.Distillation = None,
    setting: options.Settings = None,
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
    saliency: options.Saliency = "magnitude",
    as_json: options.Json = False,
) -> None:
    """Show a network's blocks, what each can legally take, and the sizes and FLOPs in reach.

    With --dataset it also says what a trial will take in time and memory: it times a few training steps of a copy of
    the network on random images, which is all that it trains.
    With --filters and --png it draws a layer's filters and their series instead; with --pruning-rate, these filters
    rebuilt from templates. With --pruning-rate and --png alone it draws the rates that each block has where so many
    filters of the whole network are pruned, the least salient ones: by their magnitude, and with --dataset by gradient.

    Example: overtone inspect --model resnet20 --weights resnet20.safetensors --filters layer1.0.conv1 --png filters.png
    """
    from search.commands.survey import survey, usual_shape
    from trainers.estimate import estimate_trial

    if pruning_rate is not None and png is None:
        raise UsageError(f"pruning_rate (={pruning_rate}) goes with --png, and with --filters or without.")
    if pruning_rate is None and (filters is None) != (png is None):
        raise UsageError(f"filters (={filters!r}) and png (={png and str(png)!r}) must be given together.")
    settings = options.read_recipe(
        recipe, setting, epochs=epochs, batch_size=batch_size, precision=precision, distillation=distillation
    )
    where = parse_device(device)
    data, images, validation, (shape, count) = None, 0, 0, usual_shape(model)
    if dataset is not None:
        with decoding_bar(err_console) as told:
            data = load_data(DataSpec(name=dataset, data_dir=data_dir, stream=stream), told)
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
            err_console.print("No weights were given: these are the filters of a random start.", highlight=False)
        say({"png": str(png), "layer": filters, "errors": errors}, str(png), as_json)
        return
    network = Network.from_module(built, shape, options.parse_granularity(granularity))
    if pruning_rate is not None and png is not None:
        _show_rates(built, network, data, pruning_rate, png, weights, title=model, as_json=as_json)
        return
    limits = options.read_space(space)
    if has_global_rate(limits):
        limits = resolve_global_rates(limits, network, filter_saliency(saliency, built, data, seed=0), 8)
    limited = Space.default(network).restrict(limits)
    trial = None
    if data is not None:
        keep_freed_memory()  # as the processes of trials do
        trial = estimate_trial(
            built,
            shape,
            recipe=settings,
            epochs=epochs,
            train_images=images,
            val_images=validation,
            device=where,
            streamed=not isinstance(data.train.images, torch.Tensor),
        )
    found = survey(limited, model=model, train_images=images, epochs=epochs, trial=trial)
    if as_json:
        print_json(found.to_json())
    else:
        show_survey(out_console, found, f"{model} on {'x'.join(map(str, shape))} images, {count} classes")


def train(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="Safetensors file to write the weights to.")],
    dataset: options.Dataset = "digits",
    data_dir: options.DataDir = "data",
    train_limit: options.TrainLimit = None,
    val_from: options.ValidationFrom = "train",
    stream: options.Stream = False,
    config: Annotated[
        str | None,
        typer.Option(
            help="Train a compressed network instead, from its random start: the name of a preset that `overtone "
            "inspect` lists, or a JSON file of its blocks; the config.json of an export is one."
        ),
    ] = None,
    granularity: options.Granularity = "stage",
    epochs: Annotated[int, typer.Option(help="Epochs of training.")] = 30,
    recipe: options.Recipe = "baseline",
    lr: options.LearningRate = None,
    batch_size: options.BatchSize = None,
    lr_schedule: options.LrSchedule = None,
    precision: options.Precision = None,
    setting: options.Settings = None,
    seed: options.Seed = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")] = default_device(),
    as_json: options.Json = False,
) -> None:
    """Train an uncompressed baseline, where you have no weights yet; or a compressed network from its random start.

    After each epoch it leaves a checkpoint beside the file: stopped by Ctrl-C or a crash, the same command goes on.

    Example: overtone train --model resnet8 --dataset digits --out resnet8.safetensors

    Example: overtone train --model resnet20 --dataset cifar10 --epochs 164 --recipe resnet --out resnet20.safetensors
    """
    from trainers.train import random_network, save_trained, train_model
    from trainers.training.gradual_pruning import defer_pruning

    settings = options.read_recipe(
        recipe, setting, epochs=epochs, lr=lr, batch_size=batch_size, lr_schedule=lr_schedule, precision=precision
    )
    spec = DataSpec(name=dataset, data_dir=data_dir, train_limit=train_limit, val_from=val_from, stream=stream)
    if out.suffix != ".safetensors":
        raise UsageError(f"out (={str(out)!r}) must end in .safetensors.")
    where = parse_device(device)
    with decoding_bar(err_console) as told:
        data = load_data(spec, told)
    network = random_network(model, data, seed=seed)
    layout = Network.from_module(network, data.val.image_shape, options.parse_granularity(granularity))
    check_outputs(model, network, data.val.image_shape, data.classes)
    forms: dict[str, Any] = {}
    if config is not None:
        chosen = options.read_config(config, model, layout)
        dense, network = network, compress_model(network, layout.forms(chosen))
        forms = {"config": chosen.to_json()}
        if settings.gradual_pruning:
            defer_pruning(network, dense)
    keep_freed_memory()
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    if checkpoint.exists():
        err_console.print(f"Going on from {checkpoint}.", highlight=False)
    history = train_model(
        network,
        data,
        settings,
        epochs=epochs,
        seed=seed,
        device=where,
        on_epoch=lambda e: err_console.print(epoch_line(e, epochs), highlight=False),
        checkpoint=checkpoint,
        about={"model": model, **forms},
    )
    last = history[-1]
    about = {"dataset": dataset, "seed": seed, "epochs": epochs, "val_top1": round(last.val_top1, 6), **forms}
    save_trained(network, out, model, data, {**about, "recipe": asdict(settings)})
    checkpoint.unlink(missing_ok=True)
    found = {"out": str(out), "val_top1": last.val_top1, "val_top5": last.val_top5, "epochs": epochs}
    if config is None:
        found["weights_sha256"] = state_sha256(network)
    say(found, f"{out}: val_top1 {last.val_top1:.4f} after {epochs} epoch{'s' * (epochs > 1)}", as_json)


def _show_rates(
    built: nn.Module,
    network: Network,
    data: Data | None,
    rate: float,
    png: Path,
    weights: str | None,
    *,
    title: str,
    as_json: bool,
) -> None:
    """Draw the rates of each block under one threshold, by every saliency that can be had."""
    from results.figures.pruning_rates import plot_pruning_rates

    kinds = SALIENCIES if data is not None else SALIENCIES[:1]
    found = {kind: global_rates(network, filter_saliency(kind, built, data, seed=0), rate, 8) for kind in kinds}
    plot_pruning_rates(found, png, title=f"{title}{'' if weights is not None else ' (random start)'}", rate=rate)
    say({"png": str(png), "pruning_rate": rate, "rates": found}, str(png), as_json)


def _draw_filters(network: nn.Module, layer: str, png: Path, rate: float | None, *, title: str) -> Any:
    """Draw a layer's filters; their mean errors."""
    from results.figures.series import get_conv, mean_errors, plot_filters
    from results.figures.templates import plot_reconstructions, reconstruction_errors

    found = get_conv(network, layer)
    if rate is None:
        plot_filters(found, png, name=title)
        return mean_errors(found, name=title)
    plot_reconstructions(found, png, rate, name=title)
    return reconstruction_errors(found, rate, name=title)
