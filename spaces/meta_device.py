"""Networks on PyTorch's meta device: what a packed file describes, before it is clear that the file holds it.

Parameters and blank tensors (zeros, ones, empty) are on the meta device, nothing is initialized, and only what the
constructor computes is real. A network of any size then costs its names and shapes alone, so its packed size can be
compared with the file's before anything is allocated. What is allocated after that are the stored tensors, never the
dense filters.
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

__all__ = ["build_on_meta", "convert_layers", "materialize", "packed_bytes"]


def build_on_meta(name: str, *, classes: int, channels: int) -> nn.Module:
    """Return the network that `build_model` gives for a name, with its parameters on the meta device."""
    with _MetaMode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision warns about initialization, which is left out here
        return build_model(name, classes=classes, channels=channels)


def packed_bytes(network: nn.Module, forms: Mapping[str, LayerForm]) -> int:
    """Return `size_bytes` of the network in these forms; raise `UsageError` if a name or form does not fit it."""
    modules = dict(network.named_modules())
    for name in forms:
        if name not in modules:
            raise UsageError(f"layer (={name!r}) must be one of the model's layers")
    shapes = {name: LayerShape.from_module(modules[name]) for name in forms}
    return network_cost(shapes, forms, remaining_cost(network, forms)).size_bytes


def convert_layers(network: nn.Module, forms: Mapping[str, LayerForm]) -> None:
    """Replace layers of a network on the meta device by those in their forms, whose stored tensors are there too."""
    for name, form in forms.items():
        parent, _, child = name.rpartition(".")
        owner = network.get_submodule(parent)
        setattr(owner, child, _compress_on_meta(getattr(owner, child), form))


def materialize(network: nn.Module) -> None:
    """Move what is on the meta device to uninitialized memory."""
    network._apply(lambda tensor: torch.empty_like(tensor, device="cpu") if tensor.is_meta else tensor)


def _compress_on_meta(layer: nn.Module, form: LayerForm) -> CompressedLayer:
    """Return the layer in its form, its stored tensors on the meta device.

    A convolution is compressed with a single filter and channel, which allocates next to nothing; then the tensors
    whose shapes depend on the numbers of filters and channels are replaced.
    """
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return compress_layer(layer, form)
    shape = LayerShape.from_module(layer)
    thin = copy.deepcopy(layer)
    thin.in_channels = thin.out_channels = thin.groups = 1
    thin.weight = nn.Parameter(torch.zeros(1, 1, *thin.kernel_size))
    thin_form = dataclasses.replace(form, groups=1, templates=form.templates and 1, assignment=None)
    compressed = compress_layer(thin, thin_form)
    assert isinstance(compressed, CompressedConv2d)
    compressed.shape = shape
    compressed.form = form
    for name, stored in stored_tensors(shape, form).items():
        setattr(compressed, name, nn.Parameter(torch.empty(stored.shape, device="meta")))
    if compressed.template_mask is not None:
        compressed.template_mask = torch.zeros(shape.out_channels, dtype=torch.bool)
    if form.assignment is not None:
        count = stored_indices(shape, form)["template_index"].values
        compressed.template_index = torch.zeros(count, dtype=torch.int32)
    if form.allocation is not None:
        compressed.frequency_support = torch.zeros(shape.out_channels, dtype=torch.uint8)
    return compressed


class _MetaMode(TorchFunctionMode):
    """A mode that puts blank tensors on the meta device and leaves initialization out."""

    blank = (torch.empty, torch.zeros, torch.ones, torch.full)
    drawn = (Tensor.normal_, Tensor.uniform_)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func in self.drawn or getattr(func, "__module__", None) == "torch.nn.init":
            tensor: Tensor = args[0] if args else options["tensor"]
            return tensor
        if func in self.blank and options.get("device") is None:
            options["device"] = "meta"
        return func(*args, **options)
