"""The shapes of a network's layers and its products, from one forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from layers import LayerShape, UsageError
from layers.errors import translate_errors
from layers.plainness import kept_because
from spaces.modes import evaluation_mode

__all__ = ["Traced", "trace"]


@dataclass(frozen=True)
class Traced:
    """What a network does with one image."""

    shapes: dict[str, LayerShape]
    """Shape of every convolution and linear layer that can be compressed, in network order."""
    macs: int
    """Multiply-accumulates of all convolutions and matrix products, also of those without weights (attention's)."""


def trace(model: nn.Module, image: tuple[int, int, int]) -> Traced:
    """Return the shapes and products of a network, recorded while it takes a (channels, height, width) image.

    Layers that are not called cannot be compressed: either other code reads their weights (torchvision's Swin and
    torch's attention do) and would not understand a compressed form, or they serve training alone. Nor can layers that
    do more than their class (`layers.plainness`). Raises `UsageError` if the network cannot take an image of this size.
    """
    calls: dict[str, list[tuple[tuple[int, int], tuple[int, int]]]] = {}
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)
        and not kept_because(module)
        and not _is_read_by_parent(model, name)
    }
    hooks = [module.register_forward_hook(_recorder(calls.setdefault(name, []))) for name, module in layers.items()]
    size = "x".join(map(str, image))
    failure = f"the network {type(model).__name__} cannot take {size} images"
    try:
        with (
            translate_errors(failure, Exception, to=UsageError),  # of the user's own code
            evaluation_mode(model),
            _plain_attention(),
            FlopCounterMode(display=False) as counter,
        ):
            model(torch.zeros(1, *image))
    finally:
        for hook in hooks:
            hook.remove()
    shapes = {
        name: LayerShape.from_module(module, tuple(calls[name])) for name, module in layers.items() if calls[name]
    }
    return Traced(shapes, counter.get_total_flops() // 2)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Compute attention by the products that it is made of, which can be counted."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _is_read_by_parent(model: nn.Module, layer: str) -> bool:
    """Return whether a layer is within one of torch's modules that read the weights of their layers."""
    parts = layer.split(".")
    above = (model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts)))
    return any(isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer) for module in above)


def _recorder(calls: list[tuple[tuple[int, int], tuple[int, int]]]):  # type: ignore[no-untyped-def]
    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Linear):
            rows = output[0].numel() // len(module.weight)
            calls.append(((1, rows), (1, rows)))
        else:
            calls.append((_size(module, inputs[0]), _size(module, output)))

    return record


def _size(conv: nn.Module, x: Tensor) -> tuple[int, int]:
    """Return height and width; the height is 1 for 1-D convolutions."""
    return (1 if isinstance(conv, nn.Conv1d) else x.shape[-2], x.shape[-1])
