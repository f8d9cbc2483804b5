"""The fastest exact form of each layer on this device, found by timing each form once.

A series layer can build its filters, which evaluation keeps, or convolve with its basis functions and mix; a template
layer can build its filters or work in two stages (`layers.execution`). Which is faster depends on shapes and device, so
it is measured; the cost model's `flops` do not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from layers.compress import compressed_layers
from layers.conv import CompressedConv2d
from layers.execution import Execution
from layers.timing import median_ms

__all__ = ["autotune", "autotuned"]

_RUNS = 10
_WARM_UP = 3
_BUDGET_S = 0.5
"""A form that takes longer for all its runs gets fewer of them."""
_GAIN = 0.95
"""Another form than `dense` must take at most this share of its time, since timings are noisy."""

_fastest_forms: dict[Any, Execution] = {}
"""The fastest form by layer, input and device, for the rest of the process."""


def autotune(model: nn.Module, images: Tensor) -> dict[str, Execution]:
    """Set `execution` of every compressed convolution to its fastest for images like these; return them by layer.

    Images are (B, C, H, W) on the model's device. The model runs once, in evaluation mode and without gradients. Layers
    of one shape and form, with inputs of one size, are timed once a process.
    """
    layers = {name: layer for name, layer in compressed_layers(model).items() if isinstance(layer, CompressedConv2d)}
    if all(len(layer.executions) == 1 for layer in layers.values()):
        return {name: layer.execution for name, layer in layers.items()}
    modes = [(module, module.training) for module in model.modules()]
    hooks = [layer.register_forward_pre_hook(_tune) for layer in layers.values()]
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
    """Run `autotune` for the time of a block."""
    layers = [layer for layer in compressed_layers(model).values() if isinstance(layer, CompressedConv2d)]
    before = [layer.execution for layer in layers]
    try:
        autotune(model, images)
        yield
    finally:
        for layer, execution in zip(layers, before, strict=True):
            layer.execution = execution


def _tune(layer: nn.Module, inputs: tuple[Tensor]) -> None:
    """Time a layer's forms on the input that it is about to get, unless that was done before."""
    assert isinstance(layer, CompressedConv2d)
    key = _key(layer, inputs[0])
    if key not in _fastest_forms:
        _fastest_forms[key] = _fastest({form: _form_ms(layer, inputs[0], form) for form in layer.executions})
    layer.execution = _fastest_forms[key]


def _fastest(times: dict[Execution, float]) -> Execution:
    best = min(times, key=lambda form: times[form])
    return best if times[best] < _GAIN * times["dense"] else "dense"


def _key(layer: CompressedConv2d, x: Tensor) -> Any:
    geometry = (layer.shape, layer.form, layer.strides, layer.margins, layer.padding_mode, layer.dilations)
    device = torch.cuda.get_device_name(x.device) if x.is_cuda else (x.device.type, torch.get_num_threads())
    return type(layer), geometry, x.shape, x.stride(), x.dtype, device


def _form_ms(layer: CompressedConv2d, x: Tensor, execution: Execution) -> float:
    if len(layer.executions) == 1:
        return 0.0  # there is no choice
    layer.execution = execution
    return median_ms(partial(layer.forward, x), x.device, runs=_RUNS, warm_up=_WARM_UP, budget_s=_BUDGET_S)
