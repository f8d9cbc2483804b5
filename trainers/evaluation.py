"""How good a network is: accuracies and loss of a split, predicted classes.

Images stay uint8 until their batch is on the device. The network runs in evaluation mode, in float32, without
gradients, and is left as it was.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from layers.errors import OvertoneError
from trainers.data import Split
from trainers.runtime.determinism import eval_mode

__all__ = ["Evaluation", "default_eval_batch_size", "evaluate", "evaluation", "predict", "predict_logits"]

_TOP = 5


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one pass over a split measured."""

    top1: float
    """Share of images, 0 to 1, whose label has the highest output."""
    top5: float
    """Share of images whose label is among the five highest outputs; 1 if there are no more than five classes."""
    loss: float
    """Mean cross-entropy in nats."""
    n: int
    """Number of images."""

    def metrics(self, split: str) -> dict[str, float]:
        """Return the values by name, `val_top1`, `val_top5` and `val_loss` for the split 'val'."""
        return {f"{split}_top1": self.top1, f"{split}_top5": self.top5, f"{split}_loss": self.loss}


def evaluate(
    model: nn.Module,
    split: Split,
    normalize: Callable[[torch.Tensor], torch.Tensor],
    *,
    device: torch.device | str,
    batch_size: int | None = None,
) -> Evaluation:
    """Measure accuracies and loss on a split; raise OvertoneError if an output is infinite or not a number.

    `normalize` makes a batch of uint8 images into the network's input; it is the `Data.normalize` of the split's data.
    """
    return evaluation(_logits(model, split, normalize, device, batch_size), split.labels)


def evaluation(logits: torch.Tensor, labels: torch.Tensor) -> Evaluation:
    """Return what logits (n, classes) are worth for images of these labels (n,)."""
    logits, labels = logits.double(), labels.to(logits.device)
    hits = int((logits.argmax(1) == labels).sum())
    highest = logits.topk(min(_TOP, logits.shape[1]), 1).indices
    near_hits = int((highest == labels[:, None]).sum())
    return Evaluation(
        top1=hits / len(labels),
        top5=near_hits / len(labels),
        loss=float(F.cross_entropy(logits, labels)),
        n=len(labels),
    )


def predict(
    model: nn.Module,
    split: Split,
    normalize: Callable[[torch.Tensor], torch.Tensor],
    *,
    device: torch.device | str,
    batch_size: int | None = None,
) -> torch.Tensor:
    """Return the class (n,) of each image, int64 on the CPU; parameters and errors are those of `evaluate`."""
    return _logits(model, split, normalize, device, batch_size).argmax(1).cpu()


def predict_logits(
    model: nn.Module, split: Split, normalize: Callable[[torch.Tensor], torch.Tensor], *, device: torch.device | str
) -> torch.Tensor:
    """Return the outputs (n, classes) for each image, on the CPU; parameters and errors are those of `evaluate`."""
    return _logits(model, split, normalize, device, None).cpu()


def default_eval_batch_size(device: torch.device | str) -> int:
    """Return how many images to evaluate at a time: as many as suit a CPU's caches, or fill a GPU."""
    return 128 if torch.device(device).type == "cpu" else 512


def _logits(
    model: nn.Module,
    split: Split,
    normalize: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device | str,
    batch_size: int | None,
) -> torch.Tensor:
    """Return the outputs (n, classes), checked, on the device."""
    with eval_mode(model.to(device)):
        rows = torch.arange(len(split)).split(batch_size or default_eval_batch_size(device))
        logits = torch.cat([model(normalize(images)) for images, _ in split.batches(rows, device)])
    bad = int((~logits.isfinite()).any(1).sum())
    if bad:
        raise OvertoneError(f"the network's outputs are infinite or not numbers for {bad} of {len(split)} images")
    return logits
