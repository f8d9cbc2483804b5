"""Which exact form of each layer runs fastest on this device, found by timing it once.

A series layer can build its filters (kept in evaluation) or convolve with its basis functions and mix; a template layer
can build them or work in two stages. Which is faster depends on shapes and device, so it is measured; the cost model's
`flops` do not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from layers.compress import compressed_layers
from layers.conv import CompressedConv2d, Execution
from layers.timing import median_ms

__all__ = ["autotune", "autotuned"]

_RUNS, _WARM_UP = 10, 3
_BUDGET_S = 0.5
"""A form that takes longer for all its runs gets fewer of them."""
_GAIN = 0.95
"""Another form than `dense` must take at most this share of its time: timings are noisy."""

_chosen: dict[Any, Execution] = {}


def autotune(model: nn.Module, images: Tensor) -> dict[str, Execution]:
    """Set `execution` of every compressed convolution to its fastest for such images; gives back what was chosen.

    Images are (B, C, H, W) on the model's device; the model runs once, in evaluation mode and without gradients. What
    was once timed for a layer's shape, form, input and device is known for the rest of the process.
    """
    layers = {name: layer for name, layer in compressed_layers(model).items() if isinstance(layer, CompressedConv2d)}
    if all(len(layer.executions) == 1 for layer in layers.values()):
        return {name: layer.execution for name, layer in layers.items()}
    modes = [(module, module.training) for module in model.modules()]
    hooks = [layer.register_forward_pre_hook(_choose) for layer in layers.values()]
    try:
        with torch.no_grad():
            model.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return {name: layer.execution for name, layer in layers.items()}


@contextmanager
def autotuned(model: nn.Module, images: Tensor) -> Iterator[None]:
    """`autotune` for the time of a block."""
    layers = [layer for layer in compressed_layers(model).values() if isinstance(layer, CompressedConv2d)]
    before = [layer.execution for layer in layers]
    try:
        autotune(model, images)
        yield
    finally:
        for layer, execution in zip(layers, before, strict=True):
            layer.execution = execution


def _choose(layer: nn.Module, inputs: tuple[Tensor]) -> None:
    """Before a layer runs: time its forms on what it is about to get, unless that is known."""
    assert isinstance(layer, CompressedConv2d)
    key = _key(layer, inputs[0])
    if key not in _chosen:
        _chosen[key] = _fastest({form: _form_ms(layer, inputs[0], form) for form in layer.executions})
    layer.execution = _chosen[key]


def _fastest(times: dict[Execution, float]) -> Execution:
    best = min(times, key=lambda form: times[form])
    return best if times[best] < _GAIN * times["dense"] else "dense"


def _key(layer: CompressedConv2d, x: Tensor) -> Any:
    places = (layer.shape, layer.form, layer.stride, layer.margins, layer.padding_mode, layer.dilation)
    device = torch.cuda.get_device_name(x.device) if x.is_cuda else (x.device.type, torch.get_num_threads())
    return type(layer), places, x.shape, x.stride(), x.dtype, device


def _form_ms(layer: CompressedConv2d, x: Tensor, execution: Execution) -> float:
    if len(layer.executions) == 1:
        return 0.0  # nothing to choose
    layer.execution = execution
    return median_ms(partial(layer.forward, x), x.device, runs=_RUNS, warm_up=_WARM_UP, budget_s=_BUDGET_S)
