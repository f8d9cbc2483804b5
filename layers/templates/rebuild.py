"""Template convolutions: all filters rebuilt from a few by cheap spatial transforms.

Miles & Mikolajczyk, "Reconstructing Pruned Filters using Cheap Spatial Transformations", eqs. 1-4 and section 2.4:
the M filters of largest magnitude stay as templates; every other filter is a template that was transformed
(`layers.templates.transforms`), by a gain per tap for one. With G groups the templates see C / G channels each, and a
filter joins one transformed template from each group.

Our deviations: the kept filters stay where they are in the output, marked by a bit each, where the paper renumbers
them to the front; the r-th rebuilt filter uses template r mod M, the paper's mapping. Transforms start where they come
nearest to the filters that they rebuild (`layers.templates.fit`), not at the identity. The number of stage-one
parameters is that of the tensors, K^2 C M; eq. 9 drops the factor G.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.errors import UsageError
from layers.templates.fit import fit_transforms
from layers.templates.transforms import Transform, tap_operators, transformed

__all__ = ["choose_templates", "fitted_transforms", "rebuild_filters", "template_count", "two_stage_conv2d"]


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


def fitted_transforms(transform: Transform, weight: Tensor, templates: Tensor, kept: Tensor) -> Tensor:
    """Parameters (N - M, G, ...) of the transforms that bring templates near to the pruned filters of a weight.

    The weight is (N, C, K_y, K_x), templates are (G, M, C / G, K_y, K_x).
    """
    groups, count, channels = templates.shape[:3]
    pruned = weight[~kept].unflatten(1, (groups, channels))
    base = templates.transpose(0, 1)[_source(len(weight) - count, templates)]
    return fit_transforms(transform, base, pruned)


def rebuild_filters(templates: Tensor, transform: Transform, parameters: Tensor, kept: Tensor) -> Tensor:
    """Filters (N, C, K_y, K_x) of templates (G, M, C / G, K_y, K_x) and transforms' parameters (N - M, G, ...)."""
    base = templates.transpose(0, 1)
    rebuilt = transformed(transform, base[_source(len(parameters), templates)], parameters)
    return torch.cat([base, rebuilt]).flatten(1, 2)[_rank(kept)]


def two_stage_conv2d(
    x: Tensor,
    templates: Tensor,
    transform: Transform,
    parameters: Tensor,
    kept: Tensor,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """The same convolution in two stages (eqs. 3-4): K_y K_x maps of each template, then a gather of these maps.

    Input (B, C, H, W), output (B, N, H_out, W_out). Map k of a template is its tap k at every place of the input;
    output n at a place sums S_n[k', k] times map k where tap k' lies. Multiply-accumulates are H_out W_out (K_y K_x C
    M + G (N - M) s). Gains have s = K_y K_x (eq. 5), and need a map at the places of its own tap alone. Transforms that
    mix taps need it at all places of the input, H W for H_out W_out in the first term, and have s = 4 K_y K_x (section
    2.5). This is the plain form that defines the result: it holds all maps in memory.
    """
    where = _Places(x.shape, templates.shape, stride, padding, dilation)
    source = _source(len(parameters), templates)
    if transform in ("rotation", "affine"):
        own, rebuilt = _gathered(x, templates, tap_operators(transform, parameters, where.kernel), source, where)
    else:
        unfolded = F.unfold(x, where.kernel, dilation=dilation, padding=padding, stride=stride)
        unfolded = unfolded.unflatten(1, (templates.shape[0], templates.shape[2], -1))
        maps = torch.einsum("bgckl,gmck->bgmkl", unfolded, templates.flatten(3))
        gains = parameters.flatten(2) if transform == "scalar" else maps.new_zeros(*parameters.shape[:2], maps.shape[3])
        own, rebuilt = maps.sum((1, 3)), torch.einsum("bgnkl,ngk->bnl", maps[:, :, source], gains)
    return torch.cat([own, rebuilt], 1)[:, _rank(kept)].unflatten(2, where.size)


class _Places:
    """Where a convolution's taps lie in its padded input."""

    def __init__(
        self,
        x: torch.Size,
        templates: torch.Size,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> None:
        self.kernel, self.stride, self.padding, self.dilation = (templates[3], templates[4]), stride, padding, dilation
        reach = [dilation[i] * (self.kernel[i] - 1) + 1 for i in (0, 1)]
        height, width = ((x[2 + i] + 2 * padding[i] - reach[i]) // stride[i] + 1 for i in (0, 1))
        self.size = (height, width)

    def seen_by(self, tap: int, maps: Tensor) -> Tensor:
        """Maps (..., H, W) of the padded input where this tap lies, (..., H_out W_out)."""
        first = [place * step for place, step in zip(divmod(tap, self.kernel[1]), self.dilation, strict=True)]
        rows, columns = (
            slice(first[i], first[i] + (self.size[i] - 1) * self.stride[i] + 1, self.stride[i]) for i in (0, 1)
        )
        return maps[..., rows, columns].flatten(-2)


def _gathered(x: Tensor, templates: Tensor, operators: Tensor, source: Tensor, where: _Places) -> tuple[Tensor, Tensor]:
    """The templates' own outputs (B, M, H_out W_out), and those of the others by their operators (N - M, G, T, T)."""
    groups, count, channels = templates.shape[:3]
    taps = templates.flatten(3).transpose(2, 3).reshape(-1, channels, 1, 1)
    maps = F.conv2d(x, taps, groups=groups).unflatten(1, (groups, count, -1))
    maps = F.pad(maps, (where.padding[1], where.padding[1], where.padding[0], where.padding[0]))
    own, rebuilt = [], []
    for tap in range(operators.shape[-1]):
        seen = where.seen_by(tap, maps)
        own.append(seen[:, :, :, tap].sum(1))
        rebuilt.append(torch.einsum("bgnkl,ngk->bnl", seen[:, :, source], operators[:, :, tap].to(maps.dtype)))
    return torch.stack(own).sum(0), torch.stack(rebuilt).sum(0)


def _source(rebuilt: int, templates: Tensor) -> Tensor:
    """The template that each rebuilt filter uses, of templates (G, M, ...)."""
    return torch.arange(rebuilt, device=templates.device) % templates.shape[1]


def _rank(kept: Tensor) -> Tensor:
    """Where each output (N,) stands in the list of the kept filters followed by the rebuilt ones."""
    first = kept.long()
    return torch.where(kept, first.cumsum(0) - 1, first.sum() + (1 - first).cumsum(0) - 1)
