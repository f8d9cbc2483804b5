"""The blocks and layers of any network, found by looking at it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from layers import LayerShape, UsageError

__all__ = ["Granularity", "Traced", "find_blocks", "trace"]

Granularity = Literal["stage", "layer"]


def find_blocks(layers: Collection[str], granularity: Granularity = "stage") -> dict[str, tuple[str, ...]]:
    """Which of the named convolution and linear layers, given in network order, are in each block.

    A `stage` is a child of the network; where one child holds more than half of all layers (torchvision's
    `features`), its own children are the stages instead. With `layer`, each layer is a block.
    """
    if granularity == "layer":
        return {name: (name,) for name in layers}
    if granularity != "stage":
        raise UsageError(f"granularity (={granularity!r}) must be 'stage' or 'layer'.")
    blocks: dict[str, list[str]] = {}
    for name in layers:
        blocks.setdefault(_stage_of(name, layers), []).append(name)
    return {block: tuple(names) for block, names in blocks.items()}


def _stage_of(layer: str, layers: Collection[str]) -> str:
    """The shortest prefix of the layer's path that holds at most half of all layers (or the layer itself)."""
    parts = layer.split(".")
    for depth in range(1, len(parts) + 1):
        prefix = ".".join(parts[:depth])
        if 2 * sum(name == prefix or name.startswith(f"{prefix}.") for name in layers) <= len(layers):
            return prefix
    return layer


@dataclass(frozen=True)
class Traced:
    """What a network does with one image."""

    shapes: dict[str, LayerShape]
    """Shape of every convolution and linear layer that can be compressed, in network order."""
    macs: int
    """Multiply-accumulates of all convolutions and matrix products, those of attention and the like included."""


def trace(model: nn.Module, image: tuple[int, int, int]) -> Traced:
    """Look at a network while it takes a (channels, height, width) image.

    Layers that are not called cannot be compressed: what reads their weights (torchvision's Swin does, and torch's
    attention) knows nothing of a compressed form, or they serve training alone. Raises `UsageError` where the network
    cannot take such an image.
    """
    calls: dict[str, list[tuple[tuple[int, int], tuple[int, int]]]] = {}
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear) and not _is_read_from_outside(model, name)
    }
    hooks = [module.register_forward_hook(_recorder(calls.setdefault(name, []))) for name, module in layers.items()]
    training = model.training
    try:
        with torch.no_grad(), _plain_attention(), FlopCounterMode(display=False) as counter:
            model.eval()(torch.zeros(1, *image))
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:  # all that torchvision's networks raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        size = "x".join(map(str, image))
        raise UsageError(f"The network {type(model).__name__} cannot take {size} images: {reason}") from error
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    shapes = {
        name: LayerShape.from_module(module, tuple(calls[name])) for name, module in layers.items() if calls[name]
    }
    return Traced(shapes, counter.get_total_flops() // 2)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Have attention computed by the products that it is made of, which can be counted."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _is_read_from_outside(model: nn.Module, layer: str) -> bool:
    """Whether a layer is within a module of torch's that reads the weights of those within."""
    parts = layer.split(".")
    above = (model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts)))
    return any(isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer) for module in above)


def _recorder(calls: list[tuple[tuple[int, int], tuple[int, int]]]):  # type: ignore[no-untyped-def]
    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Linear):
            rows = output[0].numel() // module.out_features
            calls.append(((1, rows), (1, rows)))
        else:
            calls.append((_size(module, inputs[0]), _size(module, output)))

    return record


def _size(conv: nn.Module, x: Tensor) -> tuple[int, int]:
    """Height and width, one row for 1-D convolutions."""
    return (1 if isinstance(conv, nn.Conv1d) else x.shape[-2], x.shape[-1])
