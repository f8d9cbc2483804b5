"""Networks without their memory: what a packed file describes, before it is known whether the file holds it.

Parameters and zeros, ones and blanks are on PyTorch's meta device, nothing is initialized, and what construction
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

__all__ = ["materialize", "build_on_meta", "packed_bytes", "convert_layers"]


def build_on_meta(name: str, *, classes: int, channels: int) -> nn.Module:
    """The network that `build_model` gives for a name, with its parameters on the meta device."""
    with _MetaMode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how torchvision will initialize what is not initialized here
        return build_model(name, classes=classes, channels=channels)


def packed_bytes(network: nn.Module, forms: Mapping[str, LayerForm]) -> int:
    """`size_bytes` of the network in these forms; `UsageError` where a name or form does not fit it."""
    modules = dict(network.named_modules())
    for name in forms:
        if name not in modules:
            raise UsageError(f"layer (={name!r}) must be one of the model's layers.")
    shapes = {name: LayerShape.from_module(modules[name]) for name in forms}
    return network_cost(shapes, forms, remaining_cost(network, forms)).size_bytes


def convert_layers(network: nn.Module, forms: Mapping[str, LayerForm]) -> None:
    """Exchange the layers of an outline for those in their forms, whose stored tensors are on the meta device too."""
    for name, form in forms.items():
        parent, _, child = name.rpartition(".")
        owner = network.get_submodule(parent)
        setattr(owner, child, _hollow(getattr(owner, child), form))


def materialize(network: nn.Module) -> None:
    """Give real memory to what is on the meta device, with whatever was in it."""
    network._apply(lambda tensor: torch.empty_like(tensor, device="cpu") if tensor.is_meta else tensor)


def _hollow(layer: nn.Module, form: LayerForm) -> CompressedLayer:
    """The layer in its form, from one of a single filter and channel: their numbers show in these tensors alone."""
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return compress_layer(layer, form)
    shape, thin = LayerShape.from_module(layer), copy.deepcopy(layer)
    thin.in_channels = thin.out_channels = thin.groups = 1
    thin.weight = nn.Parameter(torch.zeros(1, 1, *thin.kernel_size))
    found = compress_layer(thin, dataclasses.replace(form, groups=1, templates=form.templates and 1, assignment=None))
    assert isinstance(found, CompressedConv2d)
    found.shape, found.form = shape, form
    for name, stored in stored_tensors(shape, form).items():
        setattr(found, name, nn.Parameter(torch.empty(stored.shape, device="meta")))
    if found.template_mask is not None:
        found.template_mask = torch.zeros(shape.out_channels, dtype=torch.bool)
    if form.assignment is not None:
        found.template_index = torch.zeros(stored_indices(shape, form)["template_index"].values, dtype=torch.int32)
    if form.allocation is not None:
        found.frequency_support = torch.zeros(shape.out_channels, dtype=torch.uint8)
    return found


class _MetaMode(TorchFunctionMode):
    """Puts blank tensors on the meta device, and leaves initialization out."""

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
