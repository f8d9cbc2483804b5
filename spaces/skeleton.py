"""Networks without their memory: what a packed file describes, before it is known whether the file holds it.

Parameters and zeros, ones and blanks are on PyTorch's meta device, nothing is initialised, and what construction
computes is real. A network of any size costs its names and shapes alone, so its packed size can be compared with the
file's before anything is allocated; what is allocated then are the stored tensors, never the dense filters.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from layers import CompressedConv2d, LayerForm, LayerShape, UsageError, compress_layer, network_cost, remaining_cost
from layers.compress import CompressedLayer
from layers.form import stored_indices, stored_tensors
from spaces.models import build_model

__all__ = ["allocate", "outline", "packed_bytes", "put_in_form"]


def outline(name: str, *, classes: int, channels: int) -> nn.Module:
    """The network that `build_model` gives for a name, with its parameters on the meta device."""
    with _Outline(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how torchvision will initialise what is not initialised here
        return build_model(name, classes=classes, channels=channels)


def packed_bytes(network: nn.Module, forms: Mapping[str, LayerForm]) -> int:
    """`size_bytes` of the network in these forms; `UsageError` where a name or form does not fit it."""
    modules = dict(network.named_modules())
    for name in forms:
        if name not in modules:
            raise UsageError(f"layer (={name!r}) must be one of the model's layers.")
    shapes = {name: LayerShape.of(modules[name]) for name in forms}
    return network_cost(shapes, forms, remaining_cost(network, forms)).size_bytes


def put_in_form(network: nn.Module, forms: Mapping[str, LayerForm]) -> None:
    """Exchange the layers of an outline for those in their forms, whose stored tensors are on the meta device too."""
    for name, form in forms.items():
        parent, _, child = name.rpartition(".")
        owner = network.get_submodule(parent)
        setattr(owner, child, _hollow(getattr(owner, child), form))


def allocate(network: nn.Module) -> None:
    """Give real memory to what is on the meta device, with whatever was in it."""
    network._apply(lambda tensor: torch.empty_like(tensor, device="cpu") if tensor.is_meta else tensor)


def _hollow(layer: nn.Module, form: LayerForm) -> CompressedLayer:
    """The layer in its form, from one of a single filter and channel: their numbers show in these tensors alone."""
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return compress_layer(layer, form)
    shape, thin = LayerShape.of(layer), copy.deepcopy(layer)
    thin.in_channels = thin.out_channels = thin.groups = 1
    thin.weight = nn.Parameter(torch.zeros(1, 1, *thin.kernel_size))
    found = compress_layer(thin, dataclasses.replace(form, groups=1, templates=form.templates and 1, assignment=None))
    assert isinstance(found, CompressedConv2d)
    found.shape, found.form = shape, form
    for name, stored in stored_tensors(shape, form).items():
        setattr(found, name, nn.Parameter(torch.empty(stored.shape, device="meta")))
    if found.kept is not None:
        found.kept = torch.zeros(shape.out_channels, dtype=torch.bool)
    if form.assignment is not None:
        found.assigned = torch.zeros(stored_indices(shape, form)["assigned"].values, dtype=torch.int32)
    if form.allocation is not None:
        found.supports = torch.zeros(shape.out_channels, dtype=torch.uint8)
    return found


class _Outline(TorchFunctionMode):
    """Puts blank tensors on the meta device, and leaves initialisation out."""

    blank = (torch.empty, torch.zeros, torch.ones, torch.full)
    drawn = (Tensor.normal_, Tensor.uniform_)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in self.drawn or getattr(func, "__module__", None) == "torch.nn.init":
            tensor: Tensor = args[0] if args else given["tensor"]
            return tensor
        if func in self.blank and given.get("device") is None:
            given["device"] = "meta"
        return func(*args, **given)
