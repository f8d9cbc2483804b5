"""The loss of training: labels, smoothed or mixed, and the outputs of a teacher.

Distillation is that of Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", section 2, at
temperature 2: the teacher sees the same augmented images.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from trainers.training.distillation import Teacher
from trainers.training.recipe import TrainingRecipe

__all__ = ["Loss", "Mixer", "make_mixer"]

_TEMPERATURE = 2.0

Mixer = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""A function from images and labels (n,) to mixed images and label shares (n, classes)."""


class Loss:
    """The mean loss of a batch by a recipe; a recipe with distillation needs a teacher."""

    def __init__(self, recipe: TrainingRecipe, teacher: Teacher | None) -> None:
        self.smoothing = recipe.label_smoothing
        self.share = recipe.distillation
        self.teacher = teacher

    def __call__(self, logits: torch.Tensor, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of logits (n, classes), float32, for normalized images and labels (n,) or (n, classes)."""
        hard = F.cross_entropy(logits, targets, label_smoothing=self.smoothing)
        if self.teacher is None:
            return hard
        soft = F.log_softmax(self.teacher(images).float() / _TEMPERATURE, 1)
        ours = F.log_softmax(logits / _TEMPERATURE, 1)
        distance = _TEMPERATURE**2 * F.kl_div(ours, soft, reduction="batchmean", log_target=True)
        return self.share * distance + (1 - self.share) * hard


def make_mixer(recipe: TrainingRecipe, classes: int) -> Mixer | None:
    """Return torchvision's MixUp or CutMix, or both with one drawn for each batch; None if the recipe has neither.

    They draw from torch's global state.
    """
    if not recipe.mixup_alpha and not recipe.cutmix_alpha:
        return None
    from torchvision.transforms import v2  # here, because importing it takes a second

    mixers: list[nn.Module] = [v2.MixUp(alpha=recipe.mixup_alpha, num_classes=classes)] if recipe.mixup_alpha else []
    mixers += [v2.CutMix(alpha=recipe.cutmix_alpha, num_classes=classes)] if recipe.cutmix_alpha else []
    return v2.RandomChoice(mixers)
