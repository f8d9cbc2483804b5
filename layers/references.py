"""Copies of networks in which some layers are others, wherever they are held.

A network may call its layers through a list, a dict, a method or another object, besides the names under which they
are registered. All that `copy.deepcopy` copies is searched; what it does not copy (a closure, a weak reference, a
global) cannot be followed, and `trainers.fidelity` refuses such networks.
"""

from __future__ import annotations

import copy
import functools
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import MethodType
from typing import Any

from torch import nn

from layers.quantized import QuantizedLayer

__all__ = ["copy_with_layers"]


def copy_with_layers(model: nn.Module, make: Callable[[Mapping[str, nn.Module]], Mapping[str, nn.Module]]) -> nn.Module:
    """Return a copy of the model with other layers; the model itself stays as it is.

    `make` is given the modules of the copy by name, and returns the new layers by the names of those that they replace.
    """
    copies: dict[int, Any] = {}
    copied = copy.deepcopy(model, copies)
    copies.pop(id(copies), None)  # where `deepcopy` keeps the originals
    modules = dict(copied.named_modules())
    layers = make(modules)
    replacements = {id(modules[name]): layer for name, layer in layers.items()}
    _replace([copied, *copies.values(), *layers.values()], replacements)
    return copied


def _replace(objects: Iterable[Any], replacements: Mapping[int, nn.Module]) -> None:
    """Have all containers and attributes of `objects` hold other modules; `replacements` are by the `id` of the old."""

    def new(value: Any) -> Any:
        if id(value) in replacements:
            return replacements[id(value)]
        if isinstance(value, MethodType) and id(value.__self__) in replacements:
            return getattr(replacements[id(value.__self__)], value.__name__, value)
        if isinstance(value, tuple):
            items = [new(item) for item in value]
            if all(item is old for item, old in zip(items, value, strict=True)):
                return value
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if isinstance(value, functools.partial):
            func, args, kwargs = new(value.func), new(value.args), {k: new(v) for k, v in value.keywords.items()}
            same = func is value.func and args is value.args and all(kwargs[k] is v for k, v in value.keywords.items())
            return value if same else type(value)(func, *args, **kwargs)
        return value

    for held in objects:
        if isinstance(held, dict):
            _update(held, new)
        elif isinstance(held, list | deque):
            for index, item in enumerate(held):
                held[index] = new(item)
        elif isinstance(held, set):
            items = [new(item) for item in held]
            held.clear()
            held.update(items)
        if hasattr(held, "__dict__") and not isinstance(held, type):
            _update(vars(held), new)
            if isinstance(held, QuantizedLayer) and "carried" in vars(held):
                _update(held.carried, new)
            if isinstance(held, nn.Module):
                _update(held._modules, new)


def _update(held: dict[Any, Any], new: Any) -> None:
    """Exchange values of a dict, and keys, in their order."""
    keys = [new(key) for key in held]
    if any(key is not old for key, old in zip(keys, held, strict=True)):
        values = list(held.values())
        held.clear()
        held.update(zip(keys, values, strict=True))
    for key, value in list(held.items()):
        other = new(value)
        if other is not value:
            held[key] = other
