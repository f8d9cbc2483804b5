"""The inputs of int8 layers: each layer's grid, and who looks at inputs instead of having them rounded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from layers.errors import UsageError
from layers.integer.rounding import round_activation

__all__ = [
    "input_grid",
    "is_rounding",
    "prepare_input",
    "round_input",
    "seen_inputs",
    "set_input_grid",
    "unrounded_inputs",
]

_Observer = Callable[[nn.Module, Tensor], None]


class _Setting(threading.local):
    observer: _Observer | None = None


_setting = _Setting()


def prepare_input(layer: nn.Module) -> None:
    """Give a layer room for the grid (scale, zero point) of its input; a scale of 0 means that it has none yet."""
    layer.register_buffer("input_grid", torch.zeros(2))
    layer.has_input_grid = False  # type: ignore[assignment]
    layer.register_load_state_dict_post_hook(_follow_loading)


def set_input_grid(layer: nn.Module, grid: Tensor) -> None:
    """Set the grid of a layer's input."""
    layer.get_buffer("input_grid").copy_(grid)
    _follow_loading(layer)


def round_input(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the input as an int8 layer multiplies it; raise `UsageError` if the layer has no grid yet."""
    if _setting.observer is not None:
        _setting.observer(layer, x)
        return x
    return round_activation(x, input_grid(layer))


def input_grid(layer: nn.Module) -> Tensor:
    """Return the grid of a layer's input; raise `UsageError` if it was not set."""
    if not layer.has_input_grid:
        raise UsageError("a layer in int8 needs the scale of its input: calibrate the network on images first")
    return layer.get_buffer("input_grid")


@contextmanager
def seen_inputs(observer: _Observer) -> Iterator[None]:
    """Have int8 layers in this thread show their inputs to `observer`, and compute with them as they are."""
    before, _setting.observer = _setting.observer, observer
    try:
        yield
    finally:
        _setting.observer = before


def is_rounding() -> bool:
    """Return whether int8 layers in this thread round their inputs."""
    return _setting.observer is None


def unrounded_inputs() -> AbstractContextManager[None]:
    """Have int8 layers in this thread compute with their inputs as they are."""
    return seen_inputs(lambda layer, x: None)


def _follow_loading(layer: nn.Module, *_: object) -> None:
    layer.has_input_grid = bool(layer.get_buffer("input_grid")[0] > 0)  # type: ignore[assignment]
