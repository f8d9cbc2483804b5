"""Train a network from its random start to a respectable accuracy, where the user has no weights.

One cycle of SGD with Nesterov momentum; the rate and the batch were chosen by measurement on the digits.
"""

from collections.abc import Callable

import torch
from torch import nn

from trainers.data import Data
from trainers.finetune import Epoch, Schedule, finetune

__all__ = ["BASELINE", "train_baseline"]

BASELINE = Schedule(lr=0.1, nesterov=True, weight_decay=5e-4, batch_size=64, shape="one-cycle")


def train_baseline(
    model: nn.Module,
    data: Data,
    *,
    epochs: int,
    seed: int,
    device: torch.device | str,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> list[Epoch]:
    """Train the model in place; its first weights are the caller's. `on_epoch` is told of each epoch as it ends."""
    curve = []
    for epoch in finetune(model, data, BASELINE, epochs=epochs, seed=seed, device=device):
        curve.append(epoch)
        if on_epoch is not None:
            on_epoch(epoch)
    return curve
