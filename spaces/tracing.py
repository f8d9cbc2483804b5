"""The shapes of a network's layers and its products, from one forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from layers import LayerForm, LayerShape, UsageError, layer_cost
from layers.errors import translate_errors
from layers.plainness import kept_because
from spaces.modes import evaluation_mode
from spaces.products import ProductCounter

__all__ = ["Traced", "trace"]


@dataclass(frozen=True)
class Traced:
    """What a network does with one image."""

    shapes: dict[str, LayerShape]
    """Shape of every convolution and linear layer that can be compressed, in network order."""
    macs: int
    """Multiply-accumulates of everything, as `spaces.products` counts them, also without weights (attention's)."""
    uncounted: tuple[str, ...]
    """Names of operators that may multiply, and whose products could not be counted."""


def trace(model: nn.Module, image: tuple[int, int, int]) -> Traced:
    """Return the shapes and products of a network, recorded while it takes a (channels, height, width) image.

    Some layers cannot be compressed and are left out: those that are not called, because other code reads their weights
    (torchvision's Swin and torch's attention do) and would not understand a compressed form, or because they serve
    training alone; the network itself, if it is a single layer; those that hold other layers; those that do more than
    their class (`layers.plainness`) or do not multiply as often as their kind does. Raises `UsageError` if the network
    cannot take an image of this size.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)
        and not kept_because(module)
        and not _is_read_by_parent(model, name)
    }
    layers = {
        name: module
        for name, module in found.items()
        if name and not any(other.startswith(f"{name}.") for other in found)
    }
    records = {name: _Record(module) for name, module in layers.items()}
    size = "x".join(map(str, image))
    failure = f"the network {type(model).__name__} cannot take {size} images"
    with ExitStack() as stack:
        stack.enter_context(translate_errors(failure, Exception, to=UsageError))  # of the user's own code
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(_plain_attention())
        counter = stack.enter_context(ProductCounter())
        for record in records.values():
            stack.enter_context(record.watching(counter))
        model(torch.zeros(1, *image))
    shapes = {name: record.shape() for name, record in records.items() if record.calls}
    known = {name: shape for name, shape in shapes.items() if layer_cost(shape, LayerForm()).macs == records[name].macs}
    return Traced(known, counter.macs, counter.uncounted)


_Call = tuple[tuple[int, int], tuple[int, int]]


class _Record:
    """The calls of a layer, one for each image that it takes, and what they multiply."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.calls: list[_Call] = []
        self.macs = 0

    def shape(self) -> LayerShape:
        return LayerShape.from_module(self.layer, tuple(self.calls))

    @contextmanager
    def watching(self, counter: ProductCounter) -> Iterator[None]:
        """Record what the layer does inside the block."""

        def begin(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.macs -= counter.macs

        def end(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self.macs += counter.macs
            self.calls += _calls(layer, next(iter([*args, *kwargs.values()])), output)

        hooks = [
            self.layer.register_forward_pre_hook(begin, with_kwargs=True),
            self.layer.register_forward_hook(end, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


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


def _calls(layer: nn.Module, x: Any, output: Any) -> list[_Call]:
    """Return input and output (height, width) of each image; the height of 1-D convolutions and rows is 1."""
    if not isinstance(x, Tensor) or not isinstance(output, Tensor):
        return []
    if isinstance(layer, nn.Linear):
        rows = output.numel() // layer.out_features
        return [((1, rows), (1, rows))]
    axes = 1 if isinstance(layer, nn.Conv1d) else 2
    source, target = (((1, *value.shape[-axes:])[-2:]) for value in (x, output))
    images = x.shape[0] if x.dim() == axes + 2 else 1
    return [((source[0], source[1]), (target[0], target[1]))] * images
