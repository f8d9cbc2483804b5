"""What moves the weights: SGD or AdamW with decay where it belongs, and the running average of the weights."""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from layers import CompressedConv2d, compressed_layers
from trainers.training.recipe import TrainingRecipe

__all__ = ["ModelEma", "remove_params", "make_optimizer"]


def make_optimizer(model: nn.Module, recipe: TrainingRecipe) -> torch.optim.Optimizer:
    """The schedule's optimizer over what is trained.

    Decayed is not what has one number for each channel (norms, biases, scales), nor transforms.
    """
    layers = [layer for layer in compressed_layers(model).values() if isinstance(layer, CompressedConv2d)]
    transforms = {layer.transforms() for layer in layers}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    decayed = {w for w in trained if w.dim() > 1 and w[0].numel() > 1} - transforms
    groups = [
        {"params": [w for w in trained if w in decayed], "weight_decay": recipe.weight_decay},
        {"params": [w for w in trained if w not in decayed], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), fused=True)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True)


def remove_params(optimizer: torch.optim.Optimizer, weights: Sequence[nn.Parameter]) -> None:
    """Take weights that no longer train out of an optimizer, with its moments of them."""
    gone = set(weights)
    for group in optimizer.param_groups:
        group["params"] = [weight for weight in group["params"] if weight not in gone]
    for weight in gone:
        optimizer.state.pop(weight, None)


class ModelEma:
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
