"""How good and how fast a network is: accuracies and loss of a split, predicted classes, latency.

Images stay uint8 until their batch is on the device. The network runs in evaluation mode, in float32, without
gradients, and is left as it was found.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from layers.errors import OvertoneError
from layers.execution import autotuned
from layers.timing import median_ms
from trainers.data import Split
from trainers.data.augment import normalize
from trainers.runtime.determinism import deterministic_cudnn

__all__ = ["Evaluation", "evaluate", "eval_mode", "default_eval_batch_size", "latency_ms", "predict"]

_WARM_UP, _TIMED, _BUDGET_S = 5, 30, 5.0
_TOP = 5


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one pass over a split found."""

    top1: float
    """Share of images, 0 to 1, whose label has the highest output."""
    top5: float
    """Share of images whose label is among the five highest outputs; 1 where there are no more than five classes."""
    loss: float
    """Mean cross-entropy in nats."""
    n: int
    """Images it was measured on."""


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device | str,
    batch_size: int | None = None,
) -> Evaluation:
    """Accuracies and loss of a split; raises OvertoneError where an output is infinite or not a number."""
    logits = _logits(model, split, mean, std, device, batch_size).double()
    labels = split.labels.to(logits.device)
    hits = int((logits.argmax(1) == labels).sum())
    highest = logits.topk(min(_TOP, logits.shape[1]), 1).indices
    near = int((highest == labels[:, None]).sum())
    return Evaluation(
        top1=hits / len(labels),
        top5=near / len(labels),
        loss=float(F.cross_entropy(logits, labels)),
        n=len(labels),
    )


def predict(
    model: nn.Module,
    split: Split,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device | str,
    batch_size: int | None = None,
) -> torch.Tensor:
    """The class (n,) of each image, int64 on the CPU; raises OvertoneError as `evaluate` does."""
    return _logits(model, split, mean, std, device, batch_size).argmax(1).cpu()


def default_eval_batch_size(device: torch.device | str) -> int:
    """Images that are evaluated at a time, where nobody says: as many as suit a CPU's caches, or fill a GPU."""
    return 128 if torch.device(device).type == "cpu" else 512


def latency_ms(
    model: nn.Module, shape: tuple[int, int, int], device: torch.device | str, *, batch_size: int = 1
) -> float:
    """Median time of one forward pass over a batch of images of shape (C, H, W): 30 timed runs after 5 that are not.

    Where those take more than 5 seconds there are fewer, but always 3 timed runs after one that is not. Each layer runs
    in the exact form that is fastest here (`layers.autotune`).
    """
    device = torch.device(device)
    images = torch.rand((batch_size, *shape), generator=torch.Generator().manual_seed(0)).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    with eval_mode(model.to(device)), autotuned(model, images):
        return median_ms(lambda: model(images), device, runs=_TIMED, warm_up=_WARM_UP, budget_s=_BUDGET_S)


def _logits(
    model: nn.Module,
    split: Split,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device | str,
    batch_size: int | None,
) -> torch.Tensor:
    """The outputs (n, classes), checked, on the device."""
    with eval_mode(model.to(device)):
        rows = torch.arange(len(split)).split(batch_size or default_eval_batch_size(device))
        logits = torch.cat([model(normalize(images, mean, std)) for images, _ in split.batches(rows, device)])
    bad = int((~logits.isfinite()).any(1).sum())
    if bad:
        raise OvertoneError(f"the network's outputs are infinite or not numbers for {bad} of {len(split)} images.")
    return logits


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients and with repeatable kernels; every module's own mode comes back after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # no_grad, not inference_mode: what a layer may cache here must still be usable in training
        with torch.no_grad(), deterministic_cudnn():
            yield
    finally:
        for module, training in modes:
            module.training = training
