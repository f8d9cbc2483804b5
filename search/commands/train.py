"""`overtone train`: a network from random weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from torch import nn

from layers import UsageError, compress_model
from search.commands import options
from search.commands.display import err_console, print_answer
from search.commands.option_groups import BaselineRecipeOptions, DataOptions, with_option_groups
from search.commands.parsing import parse_granularity, read_config
from search.runner.progress import decoding_bar, epoch_line
from search.study.plan import StudyPlan
from spaces import Network, NetworkConfig, state_sha256
from spaces.models import check_outputs
from trainers.data import Data, load_data
from trainers.runtime.device import default_device, keep_freed_memory, parse_device
from trainers.score import SCORE_NAME
from trainers.train import random_network, save_trained, train_model
from trainers.training.gradual_pruning import defer_pruning
from trainers.training.recipe import TrainingRecipe

__all__ = ["train"]


@with_option_groups
def train(
    model: options.Model,
    out: Annotated[Path, options.option(options.OUTPUT, "Safetensors file to write the weights to.")],
    data: DataOptions,
    recipe: BaselineRecipeOptions,
    config: options.Config = None,
    granularity: options.Granularity = StudyPlan.granularity,
    seed: Annotated[int, options.option(options.TRAINING, "Seed of all random numbers.", min=0, max=2**32 - 1)] = 0,
    device: Annotated[str, options.option(options.TRAINING, "cpu, cuda or cuda:1.")] = default_device(),
    as_json: options.AsJson = False,
) -> None:
    """Train a network from random weights.

    That is an uncompressed baseline if you have no weights yet, or with --config a compressed network. A checkpoint
    beside the file is written after each epoch. After Ctrl-C or a crash the same command continues.

    Example: overtone train --model resnet8 --dataset digits --out resnet8.safetensors

    Example: overtone train --model resnet20 --dataset cifar10 --epochs 164 --recipe resnet --out resnet20.safetensors
    """
    settings, spec = recipe.training_recipe(), data.data_spec()
    if out.suffix != ".safetensors":
        raise UsageError(f"out (={str(out)!r}) must end in .safetensors")
    torch_device = parse_device(device)
    with decoding_bar(err_console) as on_progress:
        images = load_data(spec, on_progress)
    network, chosen = _network(model, images, settings, config, granularity, seed=seed)
    form = {} if chosen is None else {"config": chosen.to_json()}
    keep_freed_memory()
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    if checkpoint.exists():
        err_console.print(f"continuing from {checkpoint}", highlight=False)
    last = train_model(
        network,
        images,
        settings,
        epochs=recipe.epochs,
        seed=seed,
        device=torch_device,
        on_epoch=lambda epoch: err_console.print(epoch_line(epoch, recipe.epochs), highlight=False),
        checkpoint=checkpoint,
        about={"model": model, **form},
    )[-1]
    about = {"dataset": data.dataset, "seed": seed, "epochs": recipe.epochs, SCORE_NAME: round(last.score, 6), **form}
    save_trained(network, out, model, images, {**about, "recipe": asdict(settings)})
    checkpoint.unlink(missing_ok=True)
    answer: dict[str, Any] = {"out": str(out), **last.metrics, "epochs": recipe.epochs}
    if chosen is None:
        answer["weights_sha256"] = state_sha256(network)
    plural = "" if recipe.epochs == 1 else "s"
    print_answer(answer, f"{out}: {SCORE_NAME} {last.score:.4f} after {recipe.epochs} epoch{plural}", as_json)


def _network(
    model: str, data: Data, recipe: TrainingRecipe, config: str | None, granularity: str, *, seed: int
) -> tuple[nn.Module, NetworkConfig | None]:
    """Return the network with random weights, compressed if a config is named, and that config."""
    dense = random_network(model, data, seed=seed)
    network = Network.from_module(dense, data.val.image_shape, parse_granularity(granularity))
    check_outputs(model, dense, data.val.image_shape, data.classes)
    if config is None:
        return dense, None
    chosen = read_config(config, model, network)
    compressed = compress_model(dense, network.forms(chosen))
    if recipe.gradual_pruning:
        defer_pruning(compressed, dense)
    return compressed, chosen
