"""Train a network from a random start, for users without weights; compressed networks too, as papers do."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layers import compressed_layers
from spaces import build_model, save_model, save_weights
from trainers.data import Data
from trainers.training.checkpoint import read_checkpoint, write_checkpoint
from trainers.training.loop import Epoch, TrainingLoop
from trainers.training.recipe import TrainingRecipe
from trainers.trial import image_card

__all__ = ["random_network", "save_trained", "train_model"]


def random_network(model: str, data: Data, *, seed: int) -> nn.Module:
    """Return an uncompressed network for the data with random weights; torch's own random state stays as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model(model, classes=data.classes, channels=data.channels)


def train_model(
    model: nn.Module,
    data: Data,
    recipe: TrainingRecipe,
    *,
    epochs: int,
    seed: int,
    device: torch.device | str,
    on_epoch: Callable[[Epoch], None] | None = None,
    checkpoint: Path | None = None,
    about: Mapping[str, Any] | None = None,
) -> list[Epoch]:
    """Train the model in place from the weights it has, and call `on_epoch` with each epoch as it ends.

    With a checkpoint file the training continues from it if it exists, and writes it after each epoch but the last.
    `about`, plain JSON, identifies the training: the checkpoint of another one is refused (UsageError).
    """
    training = TrainingLoop(model, data, recipe, epochs=epochs, seed=seed, device=device)
    identity = {**(about or {}), **recipe.identity(), "data": data.fingerprint, "epochs": epochs, "seed": seed}
    history: list[Epoch] = []
    if checkpoint is not None and checkpoint.exists():
        state = read_checkpoint(checkpoint, identity)
        training.load_state_dict(state)
        history = [Epoch(**epoch) for epoch in state["history"]]
    for epoch in training:
        history.append(epoch)
        if checkpoint is not None and epoch.epoch < epochs:
            past = [asdict(epoch) for epoch in history]
            write_checkpoint(checkpoint, identity, {**training.state_dict(), "history": past})
        if on_epoch is not None:
            on_epoch(epoch)
    return history


def save_trained(network: nn.Module, out: Path, model: str, data: Data, about: Mapping[str, Any]) -> None:
    """Write the weights for `spaces.load_weights`, or a packed file for `load_model` if the network is compressed."""
    if compressed_layers(network):
        save_model(network, out, card={"model": model, **image_card(data), **about})
    else:
        save_weights(network, out, {"model": model, **{name: str(value) for name, value in about.items()}})
