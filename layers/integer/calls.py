"""The calls of a network's forward pass that name its tensors.

Where rounding belongs, between a norm and an addition, no module of the user's network stands. But calls of certain
functions, numbered as they come, name tensors: call 7 gives the same tensor in the uncompressed network, in each
compressed form of it, in training and while it is exported. A `CallMode` sees them (`TorchFunctionMode`). What happens
inside a compressed layer is hidden from it; the layer counts as the one call of the function that it replaces.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from layers.integer.kernels import Sums, with_sums

__all__ = ["ADDITIONS", "Call", "CallMode", "Kind", "hidden_calls", "layer_call"]

Kind = Literal["layer", "norm", "relu", "add", "concatenate", "average", "same_values"]
"""What a counted function does. A `relu` makes negative values zero, and may bound others; `same_values` takes what is
there, and pads with zeros."""

ADDITIONS = ("add", "add_", "__add__", "__radd__", "__iadd__")
_BOUNDS = ("hardtanh", "hardtanh_", "clamp", "clamp_", "clip", "clip_")
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("conv1d", "conv2d", "linear"), "layer"),
    **dict.fromkeys(("batch_norm",), "norm"),
    **dict.fromkeys(("relu", "relu_", "relu6", *_BOUNDS), "relu"),
    **dict.fromkeys(ADDITIONS, "add"),
    **dict.fromkeys(("cat", "concat", "concatenate"), "concatenate"),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "mean"), "average"),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "adaptive_max_pool2d", "pad"), "same_values"),
}
"""Kinds by the functions' names, whether they are methods or not."""


class _Active(threading.local):
    mode: CallMode | None = None


_active = _Active()


@dataclass(frozen=True)
class Call:
    """One counted call of a forward pass."""

    number: int
    """Its place among the counted calls, from 0."""
    kind: Kind
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Tensor
    layer: nn.Module | None
    """The compressed layer if it is one's call."""


class CallMode(TorchFunctionMode):
    """A mode that numbers the counted calls of one forward pass; `called` and `passed` are for subclasses."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        """Calls so far."""
        self._hidden = 0
        self._outer: CallMode | None = None

    def __enter__(self) -> Self:
        self._outer, _active.mode = _active.mode, self
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        _active.mode = self._outer
        super().__exit__(*error)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._hidden:
            return func(*args, **kwargs)
        sums = self.sums(func, args)
        result = func(*args, **kwargs)
        if sums is not None:
            result = with_sums(result, sums)
        kind = _kind(func, args, kwargs, result)
        return self.passed(func, args, kwargs, result) if kind is None else self.call(kind, args, kwargs, result, None)

    def call(
        self, kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor, layer: nn.Module | None
    ) -> Tensor:
        """Give a call its number, and return what it gives to the network."""
        number, self.calls = self.calls, self.calls + 1
        with hidden_calls():
            return self.called(Call(number, kind, args, kwargs, result, layer))

    def sums(self, func: Any, args: tuple[Any, ...]) -> Sums | None:
        """Return what an integer kernel would add up in place of a call that is about to happen, if it is one."""
        return None

    def called(self, call: Call) -> Tensor:
        """Return what a counted call gives to the network."""
        return call.result

    def passed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        """Return what a call that is not counted gives to the network."""
        return result


@contextmanager
def hidden_calls() -> Iterator[None]:
    """Hide calls from the mode of this thread, if there is one."""
    mode = _active.mode
    if mode is None:
        yield
        return
    mode._hidden += 1
    try:
        yield
    finally:
        mode._hidden -= 1


def layer_call(layer: nn.Module, x: Tensor, y: Tensor, sums: Sums | None) -> Tensor:
    """Count a compressed layer's call that gave `y`, and return what it gives to the network.

    `sums` are what an integer kernel has, if the layer computes as one.
    """
    mode = _active.mode
    if sums is not None and mode is not None:
        y = with_sums(y, sums)
    return y if mode is None or mode._hidden else mode.call("layer", (x,), {}, y, layer)


def _kind(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Kind | None:
    """Return what a call is counted as, from nothing that training, evaluation and compression change."""
    name = getattr(func, "__name__", "")
    kind = _KINDS.get(name)
    if kind is None or not isinstance(result, Tensor) or not result.is_floating_point():
        return None
    if kind == "add" and (kwargs or not _floats(args)):
        return None
    if name in _BOUNDS and _first_bound(name, args, kwargs) != 0:
        return None
    if name == "pad":
        mode = kwargs.get("mode", args[2] if len(args) > 2 else "constant")
        value = kwargs.get("value", args[3] if len(args) > 3 else None)
        return kind if mode == "constant" and not value else None
    if name.startswith("avg_pool") and _is_one(kwargs.get("kernel_size", args[1] if len(args) > 1 else None)):
        return "same_values"
    return kind


def _first_bound(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the value that a function's outputs are not below; None if it is a tensor, or there is none."""
    word = "min_val" if name.startswith("hardtanh") else "min"
    bound = kwargs.get(word, args[1] if len(args) > 1 else (-1.0 if name.startswith("hardtanh") else None))
    return bound if isinstance(bound, int | float) else None


def _floats(args: tuple[Any, ...]) -> bool:
    return len(args) == 2 and all(isinstance(x, Tensor) and x.is_floating_point() and x.dim() > 1 for x in args)


def _is_one(kernel: Any) -> bool:
    return all(size == 1 for size in kernel) if isinstance(kernel, tuple | list) else kernel == 1
