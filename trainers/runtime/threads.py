"""How many of a process's threads take part in a training step on a CPU.

A step is hundreds of short parallel regions, each as long as its slowest thread. In a small network more threads save
little on a quiet machine. If other processes keep the cores busy, every region waits until its last thread gets a core,
and an epoch of a tenth of a second can take forty (`benchmarks/training_threads.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from statistics import mean
from typing import Any

import torch
from torch import nn

from layers import CompressedConv2d, CompressedLinear, LayerShape
from trainers.runtime.determinism import eval_mode

__all__ = ["num_threads", "threads_for_step"]

_MACS = 8_000_000
"""Multiply-accumulates of an average layer for a batch that are worth one more thread."""
_COMPRESSED = (CompressedConv2d, CompressedLinear)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear, *_COMPRESSED)


def threads_for_step(
    model: nn.Module, image: tuple[int, int, int], batch_size: int, device: torch.device, *, streamed: bool
) -> int:
    """Return the threads for a pass over a batch of images (C, H, W): the process's, or fewer for a small network.

    Streamed images always take all, because threads decode them too. The same network and process always get the same
    number, because sums depend on it. The model is on the device.
    """
    most = torch.get_num_threads()
    if most == 1 or device.type != "cpu" or streamed:
        return most
    macs = batch_size * mean(_macs(model, image) or [0])
    return max(1, min(most, int(macs / _MACS)))


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Run with `count` threads, and with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _macs(model: nn.Module, image: tuple[int, int, int]) -> list[int]:
    """Return the multiply-accumulates of each call of a layer, filters built, for one image (C, H, W)."""
    macs = []

    def count(layer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        shape = layer.shape if isinstance(layer, _COMPRESSED) else LayerShape.from_module(layer)
        macs.append(output.numel() * shape.filter_channels * prod(shape.kernel))

    hooks = [layer.register_forward_hook(count) for layer in model.modules() if isinstance(layer, _LAYERS)]
    try:
        with num_threads(1), eval_mode(model):
            model(torch.zeros(1, *image))
    finally:
        for hook in hooks:
            hook.remove()
    return macs
