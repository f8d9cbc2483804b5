"""Template convolutions: all filters rebuilt from a few by cheap spatial transforms.

Miles & Mikolajczyk, "Reconstructing Pruned Filters using Cheap Spatial Transformations", eqs. 1-4 and section 2.4:
the M filters of largest magnitude stay as templates; every other filter is a template times a gain per tap (scalar
transforms). With G groups the templates see C / G channels each, and a filter joins one transformed template from
each group.

Our deviations: the kept filters stay where they are in the output, marked by a bit each, where the paper renumbers
them to the front; the r-th rebuilt filter uses template r mod M, the paper's mapping. Gains start at their
closed-form least-squares values, not at one. The number of stage-one parameters is that of the tensors, K^2 C M; eq.
9 drops the factor G.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.errors import UsageError

__all__ = ["choose_templates", "least_squares_gains", "rebuild_filters", "template_count", "two_stage_conv2d"]


def template_count(pruning_rate: float, filters: int, minimum: int) -> int:
    """Templates M = max(minimum, round((1 - rate) N)), at most N, that a pruning rate leaves of N filters."""
    if not 0 <= pruning_rate < 1:
        raise UsageError(f"pruning_rate (={pruning_rate}) must be in [0, 1).")
    return min(filters, max(minimum, round((1 - pruning_rate) * filters)))


def choose_templates(weight: Tensor, count: int) -> Tensor:
    """Boolean mask (N,) of the `count` filters of weight (N, ...) of largest L2 norm; ties go to the lower index."""
    magnitude = weight.detach().double().flatten(1).norm(dim=1)
    kept = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
    kept[torch.argsort(magnitude, descending=True, stable=True)[:count]] = True
    return kept


def least_squares_gains(weight: Tensor, templates: Tensor, kept: Tensor) -> Tensor:
    """Gains (N - M, G, K_y, K_x) that bring the templates nearest to the pruned filters of weight (N, C, K_y, K_x).

    Templates are (G, M, C / G, K_y, K_x). The taps separate: each gain is <w, b> / <b, b> over the group's channels.
    A tap at which the template is zero, or what rounding leaves of zero (where the terms of a series cancel), gets the
    gain zero: the quotient there means nothing and overflows.
    """
    groups, count, channels = templates.shape[:3]
    pruned = weight[~kept].unflatten(1, (groups, channels)).transpose(0, 1).double()
    base = templates[:, _source(len(weight) - count, templates)].double()
    energy = (base * base).sum(2)
    present = energy > 1e-12 * energy.amax((-2, -1), keepdim=True)
    gains = torch.where(present, (pruned * base).sum(2) / energy.where(present, 1.0), 0.0)
    return gains.transpose(0, 1).to(weight.dtype)


def rebuild_filters(templates: Tensor, gains: Tensor, kept: Tensor) -> Tensor:
    """Filters (N, C, K_y, K_x) of templates (G, M, C / G, K_y, K_x) and gains (N - M, G, K_y, K_x)."""
    base = templates.transpose(0, 1)
    rebuilt = base[_source(len(gains), templates)] * gains[:, :, None]
    return torch.cat([base, rebuilt]).flatten(1, 2)[_rank(kept)]


def two_stage_conv2d(
    x: Tensor,
    templates: Tensor,
    gains: Tensor,
    kept: Tensor,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """The same convolution in two stages (eqs. 3-4): K_y K_x maps of each template, then the gather of tap times gain.

    Input (B, C, H, W), output (B, N, H_out, W_out). Multiply-accumulates: H_out W_out K_y K_x (C M + G (N - M)), eq.
    5. This is the plain form that defines the result: it holds the unfolded input and all maps in memory.
    """
    groups, _, channels, k_y, k_x = templates.shape
    height, width = (
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * ((k_y, k_x)[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    )
    unfolded = F.unfold(x, (k_y, k_x), dilation=dilation, padding=padding, stride=stride)
    unfolded = unfolded.unflatten(1, (groups, channels, k_y * k_x))
    maps = torch.einsum("bgckl,gmck->bgmkl", unfolded, templates.flatten(3))
    rebuilt = torch.einsum("bgnkl,ngk->bnl", maps[:, :, _source(len(gains), templates)], gains.flatten(2))
    return torch.cat([maps.sum((1, 3)), rebuilt], 1)[:, _rank(kept)].unflatten(2, (height, width))


def _source(rebuilt: int, templates: Tensor) -> Tensor:
    """The template that each rebuilt filter uses, of templates (G, M, ...)."""
    return torch.arange(rebuilt, device=templates.device) % templates.shape[1]


def _rank(kept: Tensor) -> Tensor:
    """Where each output (N,) stands in the list of the kept filters followed by the rebuilt ones."""
    first = kept.long()
    return torch.where(kept, first.cumsum(0) - 1, first.sum() + (1 - first).cumsum(0) - 1)
