"""The exact forms in which a compressed convolution runs. They differ in cost, not in what they compute.

`dense` builds the filters and convolves with them. `factored`, for series without templates, convolves with the basis
functions and mixes the responses. `two_stage` and `fused`, for templates in an ungrouped convolution, make maps of the
templates and gather the outputs from them; `fused` does both in one pass, for inference on the CPU, and runs as
`two_stage` elsewhere; `sampled`, for gains, makes the maps only where they are seen. `pruned`, for templates beside
filters that are zero, convolves with the templates alone. Which form is fastest depends on the device: `layers.tuning`
measures it.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.filters import FilterLayer
from layers.series.allocation import allocated_mix
from layers.series.harmonic import basis_responses, factored_conv2d, padded
from layers.templates.fused import FusedTemplates, fused_conv2d
from layers.templates.rebuild import sampled_conv2d, two_stage_conv2d
from layers.templates.reference import ConvGeometry

__all__ = ["Execution", "convolve", "convolve_dense", "executions_of", "responses"]

Execution = Literal["dense", "factored", "two_stage", "fused", "sampled", "pruned"]


def executions_of(layer: FilterLayer) -> tuple[Execution, ...]:
    """Return the forms that a layer can run in, `dense` first; int8 rounds filters as they are built."""
    if layer.is_int8:
        return ("dense",)
    if layer.template_mask is not None:
        if layer.form.transform == "zero":
            return ("dense", "pruned")
        if layer.shape.groups > 1:
            return ("dense",)
        fused: tuple[Execution, ...] = ("fused",) if _has_one_pass(layer) else ()
        return ("dense", "two_stage", *fused, *(("sampled",) if _leaves_pixels_out(layer) else ()))
    allocated_in_groups = layer.form.allocation is not None and layer.shape.groups > 1
    return ("dense",) if layer.form.basis is None or allocated_in_groups else ("dense", "factored")


def convolve(layer: FilterLayer, x: Tensor, execution: Execution) -> Tensor:
    """Convolve inputs (B, C, H, W), already rounded, to outputs (B, N, H_out, W_out) with the bias added."""
    bias = layer.rounded_bias()
    if execution == "dense":
        return convolve_dense(layer, x, layer.filters(), bias)
    if execution == "fused" and (fused := _fused(layer, x, bias)) is not None:
        return fused
    y = {"factored": _factored, "sampled": _sampled, "pruned": _pruned}.get(execution, _two_stage)(layer, x)
    return y if bias is None else y + bias[:, None, None].to(y.dtype)


def convolve_dense(layer: FilterLayer, x: Tensor, filters: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve inputs (B, C, H, W) with filters (N, C / groups, K_y, K_x) where the layer has its own."""
    x, padding = padded(x, layer.margins, layer.padding_mode)
    return F.conv2d(x, filters, bias, layer.strides, padding, layer.dilations, layer.shape.groups)


def responses(layer: FilterLayer, x: Tensor) -> Tensor:
    """Convolve rounded inputs with the layer's basis functions (`layers.series.harmonic.basis_responses`)."""
    return basis_responses(x, *layer.bases(), **_placement(layer))


def _factored(layer: FilterLayer, x: Tensor) -> Tensor:
    coefficients = layer.stored_coefficients()
    if layer.support_index is not None:
        return allocated_mix(responses(layer, x), coefficients, layer.frequency_support)
    return factored_conv2d(x, coefficients, *layer.bases(), groups=layer.shape.groups, **_placement(layer))


def _two_stage(layer: FilterLayer, x: Tensor) -> Tensor:
    return two_stage_conv2d(x, layer.templates(), *layer.operators(), **_placement(layer))


def _sampled(layer: FilterLayer, x: Tensor) -> Tensor:
    return sampled_conv2d(x, layer.templates(), *layer.operators(), **_placement(layer))


def _pruned(layer: FilterLayer, x: Tensor) -> Tensor:
    """Convolve with the filters that are not zero, the groups of as many of them at once, into outputs of zeros."""
    mask = layer.template_mask
    assert mask is not None
    x, padding = padded(x, layer.margins, layer.padding_mode)
    by_group = mask.view(layer.shape.groups, -1)
    outputs = torch.arange(len(mask), device=mask.device).view_as(by_group)
    counts, filters, parts = by_group.sum(1), layer.filters(), []
    for count in counts.unique().tolist():
        groups = counts == count
        kept = outputs[groups][by_group[groups]]
        if len(kept):
            seen = x if groups.all() else x.unflatten(1, (len(groups), -1))[:, groups].flatten(1, 2)
            place = (layer.strides, padding, layer.dilations, int(groups.sum()))
            parts.append((kept, F.conv2d(seen, filters[kept], None, *place)))
    y = parts[0][1].new_zeros(len(x), len(mask), *parts[0][1].shape[2:])
    for kept, values in parts:
        y = y.index_copy(1, kept, values)
    return y


def _fused(layer: FilterLayer, x: Tensor, bias: Tensor | None) -> Tensor | None:
    """Convolve in one pass, or return `None` if that cannot be done here."""

    def build() -> FusedTemplates:
        return FusedTemplates.from_operators(layer.templates(), *layer.operators())

    templates = layer.cache.get("fused", layer, build)
    left, _, top, _ = layer.margins
    return fused_conv2d(x, templates, bias, stride=layer.strides, padding=(top, left), dilation=layer.dilations)


def _has_one_pass(layer: FilterLayer) -> bool:
    """Return whether outputs lie amid their taps and zeros around the image; transforms that mix taps need stride 1."""
    left, right, top, bottom = layer.margins
    geometry = ConvGeometry(layer.shape.kernel, layer.strides, (top, left), layer.dilations)
    mixes = layer.form.transform != "scalar" and layer.strides != (1, 1)
    is_even = layer.padding_mode == "zeros" and (left, top) == (right, bottom)
    return geometry.is_centered and is_even and not mixes


def _leaves_pixels_out(layer: FilterLayer) -> bool:
    """Return whether outputs can be fewer than inputs, and each tap seen on its own."""
    left, right, top, bottom = layer.margins
    reach = [dilation * (k - 1) for k, dilation in zip(layer.shape.kernel, layer.dilations, strict=True)]
    return layer.form.transform == "scalar" and (
        layer.strides != (1, 1) or top + bottom < reach[0] or left + right < reach[1]
    )


def _placement(layer: FilterLayer) -> dict[str, Any]:
    """Return where filters are applied, as `layers.series.harmonic` takes it."""
    return {
        "stride": layer.strides,
        "margins": layer.margins,
        "padding_mode": layer.padding_mode,
        "dilation": layer.dilations,
    }
