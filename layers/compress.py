"""Networks with their layers put into compressed forms."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from layers.conv import CompressedConv1d, CompressedConv2d
from layers.errors import UsageError
from layers.form import LayerForm, is_norm
from layers.linear import CompressedLinear
from layers.norm import CompressedNorm, compress_norm

__all__ = ["CompressedLayer", "compress_layer", "compress_model", "compressed_layers"]

CompressedLayer = CompressedConv2d | CompressedLinear | CompressedNorm


def compress_layer(layer: nn.Module, form: LayerForm, saliency: Tensor | None = None) -> CompressedLayer:
    """Return the layer in the given form, started at the least-squares answer to its weights.

    The filters of a convolution with the largest saliency (N,) become its templates; without it those of largest
    magnitude.
    """
    if isinstance(layer, nn.Conv2d):
        return CompressedConv2d(layer, form, saliency)
    if isinstance(layer, nn.Conv1d):
        return CompressedConv1d(layer, form, saliency)
    if isinstance(layer, nn.Linear):
        return CompressedLinear(layer, form)
    if is_norm(layer):
        return compress_norm(layer, form)
    raise UsageError(f"layer (={type(layer).__name__}) must be a Conv2d, a Conv1d, a Linear or a norm")


def compress_model(
    model: nn.Module, forms: Mapping[str, LayerForm], saliency: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Return a copy of the model with each layer named in `forms` in its form; the model itself stays as it is.

    The filters with the largest `saliency` (N,), given by the convolution's name, become templates; without it those of
    largest magnitude.
    """
    compressed = copy.deepcopy(model)
    modules = dict(compressed.named_modules())
    for name, form in forms.items():
        if name not in modules or not name:
            raise UsageError(f"layer (={name!r}) must be one of the model's layers")
        parent, _, child = name.rpartition(".")
        setattr(modules[parent], child, compress_layer(modules[name], form, (saliency or {}).get(name)))
    return compressed


def compressed_layers(model: nn.Module) -> dict[str, CompressedLayer]:
    """Return the compressed layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, CompressedLayer)}
