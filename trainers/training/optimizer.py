"""What moves the weights: SGD or AdamW with decay where it belongs, and the running average of the weights."""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from layers import CompressedConv2d, compressed_layers
from trainers.training.recipe import Schedule

__all__ = ["WeightAverage", "forget_weights", "make_optimiser"]


def make_optimiser(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """The schedule's optimiser over what is trained.

    Decayed is not what has one number for each channel (norms, biases, scales), nor transforms.
    """
    layers = [layer for layer in compressed_layers(model).values() if isinstance(layer, CompressedConv2d)]
    transforms = {layer.transforms() for layer in layers}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    decayed = {w for w in trained if w.dim() > 1 and w[0].numel() > 1} - transforms
    groups = [
        {"params": [w for w in trained if w in decayed], "weight_decay": schedule.weight_decay},
        {"params": [w for w in trained if w not in decayed], "weight_decay": 0.0},
    ]
    if schedule.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=schedule.lr, betas=(schedule.momentum, 0.999), fused=True)
    return torch.optim.SGD(groups, lr=schedule.lr, momentum=schedule.momentum, nesterov=schedule.nesterov, fused=True)


def forget_weights(optimiser: torch.optim.Optimizer, weights: Sequence[nn.Parameter]) -> None:
    """Take weights that no longer train out of an optimiser, with its moments of them."""
    gone = set(weights)
    for group in optimiser.param_groups:
        group["params"] = [weight for weight in group["params"] if weight not in gone]
    for weight in gone:
        optimiser.state.pop(weight, None)


class WeightAverage:
    """The exponentially moving average of a model's weights and of its norms' statistics.

    `keep` is the share of the average that a step leaves, at most (1 + n) / (10 + n) after n steps, so that the start
    is forgotten in short trainings too; counts and indices are the model's own.
    """

    def __init__(self, model: nn.Module, keep: float) -> None:
        self.keep, self.model = keep, copy.deepcopy(model)

    @torch.no_grad()
    def update(self, model: nn.Module, steps: int) -> None:
        """Take up the model's state after a step; so many were before it."""
        keep = min(self.keep, (1 + steps) / (10 + steps))
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        smooth = [(mean, value) for mean, value in pairs if mean.is_floating_point()]
        torch._foreach_lerp_([mean for mean, _ in smooth], [value for _, value in smooth], 1 - keep)
        for mean, value in pairs:
            if not mean.is_floating_point():
                mean.copy_(value)
