"""Train a network from random weights into a file, for users without a baseline."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from torch import nn

from layers import UsageError, compress_model
from search.runner.progress import decoding_bar, epoch_line, make_console
from search.study.parsing import read_config
from spaces import Network, NetworkConfig, state_sha256
from spaces.blocks import Granularity
from spaces.models import check_outputs
from trainers.data import Data, DataSpec, load_data
from trainers.data.description import describe_images
from trainers.fidelity import check_fidelity
from trainers.runtime.device import default_device, keep_freed_memory, parse_device
from trainers.score import SCORE_NAME
from trainers.train import random_network, save_trained, train_model
from trainers.training.gradual_pruning import defer_pruning
from trainers.training.loop import Epoch
from trainers.training.recipe import TrainingRecipe

__all__ = ["train_network"]


def train_network(
    model: str,
    data: DataSpec,
    out: Path,
    recipe: TrainingRecipe,
    *,
    epochs: int,
    config: str | None,
    granularity: Granularity,
    seed: int,
    device: str | None,
) -> tuple[Epoch, str | None]:
    """Train a network by name into the file `out`; return its last epoch, and its weights' SHA-256 if it is dense.

    With a `config` (a preset's name or a JSON file of blocks) it is a compressed network, and `out` its packed file. A
    checkpoint beside `out` is written after each epoch, and continued from if it is there.
    """
    place = parse_device(device or default_device())
    console = make_console()
    with decoding_bar(console) as on_progress:
        images = load_data(data, on_progress)
    network, chosen = _network(model, images, recipe, config, granularity, seed=seed)
    console.print(describe_images(data, images), highlight=False, markup=False, soft_wrap=True)
    form = {} if chosen is None else {"config": chosen.to_json()}
    keep_freed_memory()
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    if checkpoint.exists():
        console.print(f"continuing from {checkpoint}", highlight=False)
    last = train_model(
        network,
        images,
        recipe,
        epochs=epochs,
        seed=seed,
        device=place,
        on_epoch=lambda epoch: console.print(epoch_line(epoch, epochs), highlight=False),
        checkpoint=checkpoint,
        about={"model": model, **form},
    )[-1]
    about = {"dataset": data.name, "seed": seed, "epochs": epochs, SCORE_NAME: round(last.score, 6), **form}
    if data.mean is not None:  # what a search with these weights must know
        about |= {"mean": list(images.mean), "std": list(images.std)}
    save_trained(network, out, model, images, {**about, "recipe": asdict(recipe)})
    checkpoint.unlink(missing_ok=True)
    return last, state_sha256(network) if chosen is None else None


def _network(
    model: str, data: Data, recipe: TrainingRecipe, config: str | None, granularity: Granularity, *, seed: int
) -> tuple[nn.Module, NetworkConfig | None]:
    """Return the network with random weights, compressed if a config is named, and that config."""
    dense = random_network(model, data, seed=seed)
    network = Network.from_module(dense, data.val.image_shape, granularity)
    check_outputs(model, dense, data.val.image_shape, data.classes)
    if config is None:
        return dense, None
    chosen = read_config(config, model, network)
    if any(form.arithmetic == "int8" for form in network.forms(chosen).values()):
        raise UsageError(
            f"config (={config!r}) must have no int8: the scales of activations are those of trained weights"
        )
    check_fidelity(model, dense, network, data.val.image_shape, data.classes, [chosen])
    compressed = compress_model(dense, network.forms(chosen))
    if recipe.gradual_pruning:
        defer_pruning(compressed, dense)
    return compressed, chosen
