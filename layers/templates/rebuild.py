"""Template convolutions: all filters rebuilt from a few by cheap spatial transforms.

Miles & Mikolajczyk, "Reconstructing Pruned Filters using Cheap Spatial Transformations", eqs. 1-4 and section 2.4:
the M filters of largest magnitude, or of another saliency, stay as templates; every other filter is pruned and rebuilt
from a template by a transform (`layers.templates.operators`), such as a gain per tap. With G groups the templates see
C / G channels each, and a filter joins one transformed template from each group.

Our deviations: templates keep their position in the output, marked by a bit for each filter, while the paper renumbers
them to the front; a filter may be rebuilt from any template (`layers.templates.assignment`). Transforms start where
they come nearest to the filters that they rebuild (`layers.templates.fit`), not at the identity. The number of
stage-one parameters is that of the tensors, K^2 C M; eq. 9 drops the factor G.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.errors import UsageError
from layers.series.harmonic import padded
from layers.templates.fit import fit_transforms
from layers.templates.gather import template_gather
from layers.templates.operators import tap_operators, transformed
from layers.templates.reference import ConvGeometry
from layers.templates.transforms import Transform

__all__ = [
    "choose_templates",
    "fitted_transforms",
    "output_operators",
    "rebuild_filters",
    "sampled_conv2d",
    "two_stage_conv2d",
]


def choose_templates(weight: Tensor, count: int, saliency: Tensor | None = None) -> Tensor:
    """Return a boolean mask (N,) of the `count` most salient filters of weight (N, ...); ties go to the lower index.

    Saliency (N,) is the L2 norm by default. Raises `UsageError` if it has another length or is not finite.
    """
    saliency = weight.detach().double().flatten(1).norm(dim=1) if saliency is None else saliency.to(weight.device)
    if saliency.shape != (len(weight),) or not torch.isfinite(saliency).all():
        shape = tuple(saliency.shape)
        raise UsageError(f"saliency (of shape {shape}) must be a finite number for each of the {len(weight)} filters")
    template_mask = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
    template_mask[torch.argsort(saliency, descending=True, stable=True)[:count]] = True
    return template_mask


def fitted_transforms(
    transform: Transform, weight: Tensor, templates: Tensor, template_mask: Tensor, template_index: Tensor
) -> Tensor:
    """Return parameters (N - M, G, ...) of the transforms that bring templates near to the pruned filters of a weight.

    The weight is (N, C, K_y, K_x), templates are (G, M, C / G, K_y, K_x). `template_mask` (N,) says which filters are
    templates, `template_index` (N - M,) from which template each pruned filter is rebuilt.
    """
    pruned = weight[~template_mask].unflatten(1, (templates.shape[0], templates.shape[2]))
    return fit_transforms(transform, templates.transpose(0, 1)[template_index], pruned)


def rebuild_filters(
    templates: Tensor,
    transform: Transform,
    parameters: Tensor,
    template_mask: Tensor,
    template_index: Tensor,
    residuals: Tensor | None = None,
) -> Tensor:
    """Build filters (N, C, K_y, K_x) of templates (G, M, C / G, K_y, K_x) and transforms' parameters (N - M, G, ...).

    `template_mask` (N,) says which filters are templates, `template_index` (N - M,) from which template each pruned
    filter is rebuilt. Residuals (N - M, C, K_y, K_x) are added to the rebuilt ones.
    """
    base = templates.transpose(0, 1)
    rebuilt = transformed(transform, base[template_index], parameters)
    rebuilt = rebuilt if residuals is None else rebuilt + residuals.reshape(rebuilt.shape)
    return torch.cat([base, rebuilt]).flatten(1, 2)[_rank(template_mask, len(base))]


def output_operators(
    transform: Transform, parameters: Tensor, template_mask: Tensor, template_index: Tensor, kernel: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the outputs' tap operators, (N, G, T) if they are diagonal, else (N, G, T, T), and templates (N,).

    Templates, marked by `template_mask` (N,), have the identity. `template_index` (N - M,) says from which template
    each pruned filter is rebuilt.
    """
    count = len(template_mask) - len(parameters)
    groups = parameters.shape[1]
    taps = kernel[0] * kernel[1]
    if transform in ("scalar", "zero"):
        own = parameters.new_ones(count, groups, taps)
        gains = parameters.flatten(2) if transform == "scalar" else own.new_zeros(len(parameters), groups, taps)
        operators = torch.cat([own, gains])
    else:
        own = torch.eye(taps, dtype=parameters.dtype, device=parameters.device).expand(count, groups, -1, -1)
        operators = torch.cat([own, tap_operators(transform, parameters, kernel)])
    source = torch.cat([torch.arange(count, device=template_mask.device), template_index])
    rank = _rank(template_mask, count)
    return operators[rank], source[rank]


def two_stage_conv2d(
    x: Tensor,
    templates: Tensor,
    operators: Tensor,
    source: Tensor,
    *,
    stride: tuple[int, int],
    margins: tuple[int, int, int, int],
    padding_mode: str = "zeros",
    dilation: tuple[int, int],
) -> Tensor:
    """Convolve in two stages (eqs. 3-4): K_y K_x maps of each template, then a gather of these maps.

    Inputs (B, C, H, W), templates (G, M, C / G, K_y, K_x), operators and source as `output_operators` returns them,
    margins (left, right, top, bottom), outputs (B, N, H_out, W_out). Map k of a template is its tap k at every pixel of
    the input. Multiply-accumulates are H W K_y K_x C M and H_out W_out G (N - M) s, with s = K_y K_x for gains (eq. 5),
    4 K_y K_x for transforms that mix taps (section 2.5).
    """
    maps = F.conv2d(x, _pointwise(templates)[..., None, None], groups=len(templates))
    maps, padding = padded(maps, margins, padding_mode)  # a pointwise convolution of the padding is padding of its maps
    place = (list(templates.shape[3:]), list(stride), list(padding), list(dilation))
    return template_gather(maps, operators.to(maps.dtype), source, *place)


def sampled_conv2d(
    x: Tensor,
    templates: Tensor,
    gains: Tensor,
    source: Tensor,
    *,
    stride: tuple[int, int],
    margins: tuple[int, int, int, int],
    padding_mode: str = "zeros",
    dilation: tuple[int, int],
) -> Tensor:
    """Convolve in two stages as `two_stage_conv2d` does, by gains (N, G, T), with maps of what each tap sees alone.

    Map k of a template is its tap k at the pixel that it sees for each output: H_out W_out K_y K_x C M and
    H_out W_out G (N - M) K_y K_x multiply-accumulates, the fewer where a stride or the edges leave out pixels.
    """
    kernel = (templates.shape[3], templates.shape[4])
    x, padding = padded(x, margins, padding_mode)
    size = ConvGeometry(kernel, stride, padding, dilation).size((x.shape[2], x.shape[3]))
    seen = F.unfold(x, kernel, dilation, padding, stride).unflatten(1, (len(templates), -1, prod(kernel)))
    taps = _pointwise(templates).unflatten(0, (-1, templates.shape[1]))  # (G T, M, C / G)
    maps = (taps @ seen.transpose(2, 3).flatten(1, 2)).flatten(1, 2).unflatten(2, size)
    return template_gather(maps, gains.flatten(1)[..., None].to(maps.dtype), source, [1, 1], [1, 1], [0, 0], [1, 1])


def _pointwise(templates: Tensor) -> Tensor:
    """Return the taps of templates (G, M, C / G, K_y, K_x) as pointwise filters (G T M, C / G)."""
    return templates.permute(0, 3, 4, 1, 2).reshape(-1, templates.shape[2])


def _rank(template_mask: Tensor, count: int) -> Tensor:
    """Return the index (N,) of each output in the list of the `count` templates followed by the rebuilt filters."""
    before = template_mask.cumsum(0)
    rebuilt = torch.arange(count, count + len(template_mask), device=template_mask.device) - before
    return torch.where(template_mask, before - 1, rebuilt)
