"""How a network is trained: optimiser, learning rate over time, batch, precision."""

import math
from dataclasses import dataclass

from layers.errors import UsageError

__all__ = ["Schedule"]

_SHAPES = ("step", "cosine", "one-cycle", "constant")
_PRECISIONS = ("fp32", "bf16")
_STEP_AFTER, _STEP_TO = 3, 0.1
_WARM_UP = 0.25


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """SGD with momentum. Norms, biases and whatever else is a vector are not decayed."""

    lr: float = 1e-2
    """Highest learning rate."""
    momentum: float = 0.9
    """Of SGD."""
    nesterov: bool = False
    """Whether the momentum looks ahead."""
    weight_decay: float = 5e-4
    """L2 penalty of weights with two or more dimensions."""
    batch_size: int = 64
    """Images a step; a last, smaller batch is used too, unless it is a single image."""
    shape: str = "one-cycle"
    """'step': lr / 10 after epoch 3, however many epochs there are; 'cosine': from lr to 0; 'one-cycle': linearly up
    to lr over a quarter of all steps, then cosine to 0; 'constant'."""
    precision: str = "fp32"
    """'fp32', or 'bf16' autocast in training; evaluation is always float32."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    distillation: float = 0.0
    """Share of the loss that asks for the uncompressed network's outputs instead of the labels, 0 to 1."""

    def __post_init__(self) -> None:
        for name, value in (("lr", self.lr), ("momentum", self.momentum), ("weight_decay", self.weight_decay)):
            if not 0 <= value < math.inf:
                raise UsageError(f"{name} (={value}) must be 0 or more.")
        if self.nesterov and not self.momentum:
            raise UsageError(f"nesterov (={self.nesterov}) needs a momentum above 0.")
        if not isinstance(self.batch_size, int) or self.batch_size < 2:
            raise UsageError(f"batch_size (={self.batch_size}) must be a whole number of at least 2 (for batch norm).")
        if self.shape not in _SHAPES:
            raise UsageError(f"shape (={self.shape!r}) must be one of {', '.join(_SHAPES)}.")
        if self.precision not in _PRECISIONS:
            raise UsageError(f"precision (={self.precision!r}) must be one of {', '.join(_PRECISIONS)}.")
        if not 0 <= self.distillation <= 1:
            raise UsageError(f"distillation (={self.distillation}) must be from 0 to 1.")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"label_smoothing (={self.label_smoothing}) must be at least 0 and below 1.")

    @classmethod
    def paper(cls) -> "Schedule":
        """CosConv and ChebConv's fine-tuning: 5 epochs of SGD at 1e-4, a tenth of it after epoch 3 (batch ours)."""
        return cls(lr=1e-4, momentum=0.9, weight_decay=5e-4, batch_size=128, shape="step")

    def lr_at(self, done: float, epochs: int) -> float:
        """Learning rate of a step before which `done` epochs (a fraction, 0 <= done < epochs) were done."""
        if self.shape == "step":
            return self.lr * (1 if done < _STEP_AFTER else _STEP_TO)
        if self.shape == "constant":
            return self.lr
        share = done / epochs
        if self.shape == "one-cycle":
            if share < _WARM_UP:
                return self.lr * share / _WARM_UP
            share = (share - _WARM_UP) / (1 - _WARM_UP)
        return self.lr * (1 + math.cos(math.pi * share)) / 2
