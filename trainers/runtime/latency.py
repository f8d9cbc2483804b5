"""How fast a network is on a device."""

import torch
from torch import nn

from layers.timing import median_ms
from layers.tuning import autotuned
from trainers.runtime.determinism import eval_mode

__all__ = ["latency_ms"]

_WARM_UP = 5
_TIMED = 30
_BUDGET_S = 5.0


def latency_ms(
    model: nn.Module, shape: tuple[int, int, int], device: torch.device | str, *, batch_size: int = 1
) -> float:
    """Return the median time of one forward pass over a batch of images (C, H, W), of 30 timed runs after 5 untimed.

    If those take more than 5 seconds there are fewer runs, but always 3 timed ones after an untimed one. Each layer
    runs in the exact form that is fastest here (`layers.autotune`).
    """
    device = torch.device(device)
    images = torch.rand((batch_size, *shape), generator=torch.Generator().manual_seed(0)).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    with eval_mode(model.to(device)), autotuned(model, images):
        return median_ms(lambda: model(images), device, runs=_TIMED, warm_up=_WARM_UP, budget_s=_BUDGET_S)
