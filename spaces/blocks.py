"""The blocks and layers of any network, found by looking at it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor, nn

from layers import LayerShape, UsageError

__all__ = ["Granularity", "find_blocks", "trace_shapes"]

Granularity = Literal["stage", "layer"]


def find_blocks(layers: Collection[str], granularity: Granularity = "stage") -> dict[str, tuple[str, ...]]:
    """Which of the named convolution and linear layers, given in network order, are in each block.

    A `stage` is a child of the network; where one child holds more than half of all layers (torchvision's
    `features`), its own children are the stages instead. With `layer`, each layer is a block.
    """
    if granularity == "layer":
        return {name: (name,) for name in layers}
    if granularity != "stage":
        raise UsageError(f"blocks (={granularity!r}) must be 'stage' or 'layer'.")
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


def trace_shapes(model: nn.Module, image: tuple[int, int, int]) -> dict[str, LayerShape]:
    """Shape of every convolution and linear layer that is called for a (channels, height, width) image.

    Others cannot be compressed: what reads their weights (torchvision's Swin does, and torch's attention) knows nothing
    of a compressed form, or they serve training alone. Raises `UsageError` where the network cannot take such an image.
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
        with torch.no_grad():
            model.eval()(torch.zeros(1, *image))
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:  # all that torchvision's networks raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        size = "x".join(map(str, image))
        raise UsageError(f"The network {type(model).__name__} cannot take {size} images: {reason}") from error
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return {name: LayerShape.of(module, tuple(calls[name])) for name, module in layers.items() if calls[name]}


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
