"""Networks with their layers put into compressed forms."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from layers.conv import CompressedConv1d, CompressedConv2d
from layers.errors import UsageError
from layers.form import LayerForm, is_norm
from layers.linear import CompressedLinear
from layers.norm import CompressedNorm, compress_norm
from layers.plainness import kept_because
from layers.references import copy_with_layers

__all__ = ["CompressedLayer", "compress_layer", "compress_model", "compressed_layers"]

CompressedLayer = CompressedConv2d | CompressedLinear | CompressedNorm


def compress_layer(layer: nn.Module, form: LayerForm, saliency: Tensor | None = None) -> CompressedLayer:
    """Return the layer in the given form, started at the least-squares answer to its weights.

    The filters of a convolution with the largest saliency (N,) become its templates; without it those of largest
    magnitude. Raises `UsageError` for a layer that does more than its class (`layers.plainness`).
    """
    if not (isinstance(layer, nn.Conv2d | nn.Conv1d | nn.Linear) or is_norm(layer)):
        raise UsageError(f"layer (={type(layer).__name__}) must be a Conv2d, a Conv1d, a Linear or a norm")
    if reason := kept_because(layer):
        raise UsageError(f"layer (={type(layer).__name__}) must stay uncompressed: {reason}")
    if isinstance(layer, nn.Conv2d):
        return CompressedConv2d(layer, form, saliency)
    if isinstance(layer, nn.Conv1d):
        return CompressedConv1d(layer, form, saliency)
    if isinstance(layer, nn.Linear):
        return CompressedLinear(layer, form)
    return compress_norm(layer, form)


def compress_model(
    model: nn.Module, forms: Mapping[str, LayerForm], saliency: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Return a copy of the model with each layer named in `forms` in its form; the model itself stays as it is.

    The filters with the largest `saliency` (N,), given by the convolution's name, become templates; without it those of
    largest magnitude. A layer is exchanged wherever the model holds it (`layers.references`).
    """

    def make(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        for name in forms:
            if name not in modules or not name:
                raise UsageError(f"layer (={name!r}) must be one of the model's layers")
        return {name: compress_layer(modules[name], form, (saliency or {}).get(name)) for name, form in forms.items()}

    return copy_with_layers(model, make)


def compressed_layers(model: nn.Module) -> dict[str, CompressedLayer]:
    """Return the compressed layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, CompressedLayer)}
