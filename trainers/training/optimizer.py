"""What changes the weights: SGD or AdamW with decay where it belongs, and the moving average of the weights."""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from layers import CompressedConv2d, compressed_layers
from trainers.training.recipe import TrainingRecipe

__all__ = ["ModelEma", "make_optimizer", "remove_params"]


def make_optimizer(model: nn.Module, recipe: TrainingRecipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over the parameters that train.

    Parameters with one number a channel (norms, biases, scales) are not decayed, and transforms are not.
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
    """Remove weights that no longer train from an optimizer, with their moments."""
    removed = set(weights)
    for group in optimizer.param_groups:
        group["params"] = [weight for weight in group["params"] if weight not in removed]
    for weight in removed:
        optimizer.state.pop(weight, None)


class ModelEma:
    """The exponential moving average of a model's weights and of its norms' statistics.

    `decay` is the share of the average that a step keeps, at most (1 + n) / (10 + n) after n steps, so that short
    trainings forget the start too. Counts and indices are copied from the model.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model)

    @torch.no_grad()
    def update(self, model: nn.Module, steps: int) -> None:
        """Add the model's state after a step that `steps` steps precede."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        smooth = [(mean, value) for mean, value in pairs if mean.is_floating_point()]
        torch._foreach_lerp_([mean for mean, _ in smooth], [value for _, value in smooth], 1 - decay)
        for mean, value in pairs:
            if not mean.is_floating_point():
                mean.copy_(value)
