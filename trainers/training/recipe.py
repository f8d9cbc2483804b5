"""How a network is trained: optimizer, learning rate over time, batch, precision, regularization."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from layers.blockfloat import ROUNDINGS, Rounding
from layers.errors import UsageError, translate_errors

__all__ = ["RECIPES", "TrainingRecipe"]

_NAMES: dict[str, tuple[str, ...]] = {
    "lr_schedule": ("step", "cosine", "one-cycle", "constant"),
    "precision": ("auto", "fp32", "bf16"),
    "optimizer": ("sgd", "adamw"),
    "rounding": ROUNDINGS,
}
_STEP_TO = 0.1
_RISE = 0.25
_FORMAT = 1
"""Version of a recipe's JSON."""


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """Settings of training. Transforms and parameters with one number a channel (norms, biases) are not decayed."""

    lr: float = 1e-2
    """Highest learning rate."""
    momentum: float = 0.9
    """SGD's momentum, or AdamW's first beta."""
    nesterov: bool = False
    """Whether SGD's momentum looks ahead."""
    weight_decay: float = 5e-4
    """SGD: L2 penalty; AdamW: decoupled decay, times the learning rate."""
    batch_size: int = 64
    """Images a step; a smaller last batch is used too, unless it is a single image."""
    lr_schedule: str = "one-cycle"
    """'step': a tenth at each of `milestones`; 'cosine': from lr to 0; 'one-cycle': linearly up to lr over a quarter of
    all steps, then cosine to 0; 'constant'."""
    precision: str = "auto"
    """'fp32', 'bf16' autocast in training, or 'auto': bf16 if the device computes in it; evaluation is always
    float32."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    distillation: float = 0.0
    """Share of the loss whose target is the uncompressed network's outputs instead of the labels, 0 to 1."""
    optimizer: str = "sgd"
    """'sgd' or 'adamw'."""
    milestones: tuple[float, ...] = (3.0,)
    """Epochs, rising, after which the lr_schedule 'step' divides the learning rate by ten."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate first grows linearly from 0; 'one-cycle' has a rise of its own."""
    ema_decay: float = 0.0
    """Share of the weights' moving average that each step keeps (0.999, say), less at first. The averaged weights are
    the ones that are measured and kept; 0 is off."""
    mixup_alpha: float = 0.0
    """Alpha of MixUp (Zhang et al. 2018), 0 is off; with cutmix_alpha, one of the two is drawn for each batch."""
    cutmix_alpha: float = 0.0
    """Alpha of CutMix (Yun et al. 2019), 0 is off."""
    rotation: float = 0.0
    """The most degrees that training images are rotated either way."""
    drop_path_rate: float = 0.0
    """Stochastic depth (Huang et al. 2016): chance that an image skips the last residual branch; it falls linearly to 0
    for the first branch."""
    gradual_pruning: float = 0.0
    """Share of the epochs over which the filters that templates replace are pruned, a few at each step, the least
    salient first; 0 prunes them all before the first step."""
    grad_accum_steps: int = 1
    """Pieces that a batch is cut into if memory is short: gradients add up, norms see single pieces."""
    rounding: Rounding = "nearest"
    """How block floating point rounds in training, 'nearest' or 'stochastic'; evaluation always rounds to nearest."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))  # JSON has lists only
        for name in ("lr", "momentum", "weight_decay", "warmup_epochs", "mixup_alpha", "cutmix_alpha"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} (={getattr(self, name)}) must be 0 or more")
        for name in ("label_smoothing", "ema_decay", "drop_path_rate", "gradual_pruning"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} (={getattr(self, name)}) must be at least 0 and below 1")
        for name, allowed in _NAMES.items():
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name} (={getattr(self, name)!r}) must be one of {', '.join(allowed)}")
        if not isinstance(self.nesterov, bool):
            raise UsageError(f"nesterov (={self.nesterov!r}) must be true or false")
        if self.nesterov and not (self.momentum and self.optimizer == "sgd"):
            raise UsageError(f"nesterov (={self.nesterov}) must be false without sgd and a momentum above 0")
        if self.optimizer == "adamw" and self.momentum >= 1:
            raise UsageError(f"momentum (={self.momentum}) must be below 1 for adamw")
        if not isinstance(self.batch_size, int) or self.batch_size < 2:
            raise UsageError(f"batch_size (={self.batch_size}) must be a whole number of at least 2 (for batch norm)")
        if not isinstance(self.grad_accum_steps, int) or not 1 <= self.grad_accum_steps <= self.batch_size // 2:
            raise UsageError(
                f"grad_accum_steps (={self.grad_accum_steps}) must be a whole number from 1 to half the batch_size "
                f"(={self.batch_size})"
            )
        if not 0 <= self.distillation <= 1:
            raise UsageError(f"distillation (={self.distillation}) must be from 0 to 1")
        if not 0 <= self.rotation <= 180:
            raise UsageError(f"rotation (={self.rotation}) must be from 0 to 180 degrees")
        if list(self.milestones) != sorted(set(self.milestones)) or min(self.milestones, default=1) <= 0:
            raise UsageError(f"milestones (={list(self.milestones)}) must be rising epochs above 0")
        if self.warmup_epochs and self.lr_schedule == "one-cycle":
            raise UsageError(
                f"warmup_epochs (={self.warmup_epochs}) must be 0 for one-cycle, which has a rise of its own"
            )

    def identity(self) -> dict[str, Any]:
        """Return every setting by name."""
        return asdict(self)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data, the inverse of `from_json`."""
        return {"format": _FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainingRecipe:
        """Read a recipe; raise `UsageError` naming a setting that is unknown or not allowed, or another format."""
        if not isinstance(data, Mapping):
            raise UsageError(f"recipe (={data!r}) must be a mapping of settings")
        if "format" not in data:
            raise UsageError("the recipe has no format: it is from a pre-release of Overtone and cannot be read")
        if data["format"] != _FORMAT:
            raise UsageError(f"the recipe's format (={data['format']!r}) must be {_FORMAT}")
        settings = {name: value for name, value in data.items() if name != "format"}
        allowed = [field.name for field in fields(cls)]
        for name in settings:
            if name not in allowed:
                raise UsageError(f"setting (={name!r}) of the recipe must be one of {', '.join(allowed)}")
        with translate_errors("recipe cannot be read", TypeError, to=UsageError):
            return cls(**settings)

    def check_length(self, epochs: int) -> None:
        """Raise UsageError if all epochs would be warm-up; 0 epochs, which train nothing, are allowed."""
        if epochs and self.warmup_epochs >= epochs:
            raise UsageError(f"warmup_epochs (={self.warmup_epochs:g}) must be below the {epochs} epochs")

    def never_falls(self, epochs: int) -> bool:
        """Return whether the learning rate falls by steps of which none is within this many epochs."""
        return self.lr_schedule == "step" and bool(self.milestones) and 0 < epochs <= self.milestones[0]

    def lr_at(self, done: float, epochs: int) -> float:
        """Return the learning rate of a step that `done` epochs (a fraction, 0 <= done < epochs) precede."""
        rate = self.lr * min(1.0, done / self.warmup_epochs) if self.warmup_epochs else self.lr
        if self.lr_schedule == "step":
            return rate * _STEP_TO ** sum(done >= step for step in self.milestones)
        if self.lr_schedule == "constant":
            return rate
        share = done / epochs
        if self.lr_schedule == "one-cycle":
            if share < _RISE:
                return rate * share / _RISE
            share = (share - _RISE) / (1 - _RISE)
        return rate * (1 + math.cos(math.pi * share)) / 2


RECIPES = {
    "finetune": TrainingRecipe(distillation=0.5),
    "approxconv": TrainingRecipe(lr=1e-4, batch_size=128, lr_schedule="step"),
    "approxconv-convnext": TrainingRecipe(lr=5e-5, batch_size=128, lr_schedule="step", drop_path_rate=0.1),
    "baseline": TrainingRecipe(lr=0.1, nesterov=True),
    "resnet": TrainingRecipe(lr=0.1, weight_decay=1e-4, batch_size=128, lr_schedule="step", milestones=(82.0, 123.0)),
    "templates": TrainingRecipe(
        lr=0.1, batch_size=128, lr_schedule="step", milestones=(150.0, 225.0), rotation=15.0, gradual_pruning=40 / 300
    ),
    "templates-imagenet": TrainingRecipe(
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.05,
        batch_size=256,
        lr_schedule="cosine",
        warmup_epochs=5.0,
        mixup_alpha=0.1,
        cutmix_alpha=1.0,
    ),
}
"""Recipes by name. `approxconv` is Costain & Prisacariu's fine-tuning (appendix), `approxconv-convnext` the same for
ConvNeXt (5 epochs each); `resnet` is that of He et al. 2016 for CIFAR-10 (section 4.2: 64,000 steps, 164 epochs);
`templates` and `templates-imagenet` are Miles & Mikolajczyk's (section 4, 300 epochs from a random start). They leave
rates, decay and degrees open and let ImageNet's rate fall every 25 epochs: here we chose our own. `baseline` and
`finetune` are ours too."""
