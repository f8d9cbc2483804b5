"""Template convolutions: all filters rebuilt from a few by cheap spatial transforms.

Miles & Mikolajczyk, "Reconstructing Pruned Filters using Cheap Spatial Transformations", eqs. 1-4 and section 2.4:
the M filters of largest magnitude, or of another saliency, stay as templates; every other filter is a template that was
transformed (`layers.templates.transforms`), by a gain per tap for one. With G groups the templates see C / G channels
each, and a filter joins one transformed template from each group.

Our deviations: the kept filters stay where they are in the output, marked by a bit each, where the paper renumbers
them to the front; which template a rebuilt filter uses is free (`layers.templates.assignment`). Transforms start where
they come nearest to the filters that they rebuild (`layers.templates.fit`), not at the identity. The number of
stage-one parameters is that of the tensors, K^2 C M; eq. 9 drops the factor G.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.errors import UsageError
from layers.templates.fit import fit_transforms
from layers.templates.gather import template_gather
from layers.templates.transforms import Transform, tap_operators, transformed

__all__ = [
    "choose_templates",
    "fitted_transforms",
    "output_operators",
    "rebuild_filters",
    "template_count",
    "two_stage_conv2d",
]


def template_count(pruning_rate: float, filters: int, minimum: int) -> int:
    """Templates M = max(minimum, round((1 - rate) N)), at most N, that a pruning rate leaves of N filters."""
    if not 0 <= pruning_rate < 1:
        raise UsageError(f"pruning_rate (={pruning_rate}) must be in [0, 1).")
    return min(filters, max(minimum, round((1 - pruning_rate) * filters)))


def choose_templates(weight: Tensor, count: int, saliency: Tensor | None = None) -> Tensor:
    """Boolean mask (N,) of the `count` most salient filters of weight (N, ...); ties go to the lower index.

    Saliency (N,) is the L2 norm where it is not given. Raises `UsageError` for one of another length or not finite.
    """
    found = weight.detach().double().flatten(1).norm(dim=1) if saliency is None else saliency.to(weight.device)
    if found.shape != (len(weight),) or not torch.isfinite(found).all():
        shape = tuple(found.shape)
        raise UsageError(f"saliency (of shape {shape}) must be a finite number for each of the {len(weight)} filters.")
    kept = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
    kept[torch.argsort(found, descending=True, stable=True)[:count]] = True
    return kept


def fitted_transforms(
    transform: Transform, weight: Tensor, templates: Tensor, kept: Tensor, assigned: Tensor
) -> Tensor:
    """Parameters (N - M, G, ...) of the transforms that bring templates near to the pruned filters of a weight.

    The weight is (N, C, K_y, K_x), templates are (G, M, C / G, K_y, K_x), of which each pruned filter is `assigned` one
    (N - M,).
    """
    pruned = weight[~kept].unflatten(1, (templates.shape[0], templates.shape[2]))
    return fit_transforms(transform, templates.transpose(0, 1)[assigned], pruned)


def rebuild_filters(
    templates: Tensor,
    transform: Transform,
    parameters: Tensor,
    kept: Tensor,
    assigned: Tensor,
    residuals: Tensor | None = None,
) -> Tensor:
    """Filters (N, C, K_y, K_x) of templates (G, M, C / G, K_y, K_x) and transforms' parameters (N - M, G, ...).

    Residuals (N - M, C, K_y, K_x) are added to those that are rebuilt.
    """
    base = templates.transpose(0, 1)
    rebuilt = transformed(transform, base[assigned], parameters)
    rebuilt = rebuilt if residuals is None else rebuilt + residuals.reshape(rebuilt.shape)
    return torch.cat([base, rebuilt]).flatten(1, 2)[_rank(kept, len(base))]


def output_operators(
    transform: Transform, parameters: Tensor, kept: Tensor, assigned: Tensor, kernel: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Each output's tap operator, (N, G, T) where it is diagonal, else (N, G, T, T), and its template (N,).

    Kept filters are their template's own taps: the identity. The others are `assigned` one each (N - M,).
    """
    count, groups, taps = len(kept) - len(parameters), parameters.shape[1], kernel[0] * kernel[1]
    if transform in ("scalar", "zero"):
        own = parameters.new_ones(count, groups, taps)
        gains = parameters.flatten(2) if transform == "scalar" else own.new_zeros(len(parameters), groups, taps)
        operators = torch.cat([own, gains])
    else:
        own = torch.eye(taps, dtype=parameters.dtype, device=parameters.device).expand(count, groups, -1, -1)
        operators = torch.cat([own, tap_operators(transform, parameters, kernel)])
    source = torch.cat([torch.arange(count, device=kept.device), assigned])
    rank = _rank(kept, count)
    return operators[rank], source[rank]


def two_stage_conv2d(
    x: Tensor,
    templates: Tensor,
    operators: Tensor,
    source: Tensor,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """The same convolution in two stages (eqs. 3-4): K_y K_x maps of each template, then a gather of these maps.

    Input (B, C, H, W), templates (G, M, C / G, K_y, K_x), operators and source as `output_operators` gives them, output
    (B, N, H_out, W_out). Map k of a template is its tap k at every place of the input. Multiply-accumulates are
    H W K_y K_x C M and H_out W_out G (N - M) s, where s is K_y K_x for gains (eq. 5), 4 K_y K_x for transforms that mix
    taps (section 2.5). With a stride, gains need a map at the places of its own tap alone (as `layers.cost` counts).
    """
    kernel = list(templates.shape[3:])
    taps = templates.permute(0, 3, 4, 1, 2).reshape(-1, templates.shape[2], 1, 1)
    maps = F.conv2d(x, taps, groups=len(templates))
    return template_gather(maps, operators.to(maps.dtype), source, kernel, list(stride), list(padding), list(dilation))


def _rank(kept: Tensor, count: int) -> Tensor:
    """Where each output (N,) stands in the list of the `count` kept filters followed by the rebuilt ones."""
    before = kept.cumsum(0)
    return torch.where(kept, before - 1, torch.arange(count, count + len(kept), device=kept.device) - before)
