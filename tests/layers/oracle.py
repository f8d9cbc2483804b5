"""What a compressed convolution must compute, filter by filter and pixel by pixel, from its stored tensors."""

import itertools
from typing import Any

import torch
from torch import Tensor

from layers import CompressedConv2d, LayerForm
from layers.blockfloat import BlockFormat, quantize
from layers.series.sampling import basis_matrix
from layers.templates.operators import tap_operators


def oracle_filters(layer: CompressedConv2d) -> Tensor:
    """Filter by filter, tap by tap, from the stored tensors of a layer."""
    form, kernel = layer.form, layer.shape.kernel

    def stored(tensor: Tensor) -> Tensor:
        return tensor.detach() if form.weight_format is None else quantize(tensor.detach(), form.weight_format)

    templates = stored(layer.coefficients).double()
    if form.allocation is not None:
        rows, templates = iter(templates), torch.zeros(layer.shape.out_channels, templates.shape[1], *kernel).double()
        for filter, support in zip(templates, layer.frequency_support.tolist(), strict=True):
            n_y, n_x = support // kernel[1] + 1, support % kernel[1] + 1
            for y, x in itertools.product(range(n_y), range(n_x)):
                filter[:, y, x] = next(rows)
        assert next(rows, None) is None
    if form.basis is not None:
        sizes = zip(kernel, kernel if form.allocation else form.harmonics, strict=True)
        phi_y, phi_x = (basis_matrix(form.basis, k, n) for k, n in sizes)
        templates = torch.einsum("yi,mcij,xj->mcyx", phi_y, templates, phi_x)
    if form.templates is None:
        return templates
    filters, used, rebuilt = [], 0, 0
    for kept in layer.template_mask.tolist():
        index = used if kept else int(layer.assignment()[rebuilt])
        parts = [templates[g * form.templates + index] for g in range(form.groups)]
        if not kept:
            parts = [_transformed(layer, part, stored, rebuilt, group) for group, part in enumerate(parts)]
        filters.append(torch.cat(parts))
        used, rebuilt = used + kept, rebuilt + (not kept)
    return torch.stack(filters)


def _transformed(layer: CompressedConv2d, part: Tensor, stored: Any, rebuilt: int, group: int) -> Tensor:
    parameters = layer.transforms()
    if parameters is None:
        return 0 * part
    own = stored(parameters).double()[rebuilt, group]
    if layer.form.transform == "scalar":
        return part * own
    operator = tap_operators(layer.form.transform, own, layer.shape.kernel)
    return (part.flatten(1) @ operator.T).view(part.shape)


def rounded_inputs(x: Tensor, form: LayerForm) -> Tensor:
    """Pixel by pixel, in blocks of consecutive channels."""
    if form.activation_bits is None:
        return x
    own = BlockFormat(bits=form.activation_bits, block=form.activation_block, exponent_bits=form.exponent_bits)
    pixels = x.movedim(1, -1)
    rows = [quantize(row, own) for row in pixels.reshape(-1, x.shape[1])]
    return torch.stack(rows).view(pixels.shape).movedim(-1, 1)
