"""Where transforms start: at the parameters that bring templates nearest to the filters that they rebuild.

Gains have a closed form, tap by tap. Angles and matrices have none: the best of a grid is taken (of angles; for
matrices of mirrored and shifted templates too), and then matrices follow the gradient from there, all filters at once.
Both are deterministic.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from layers.templates.operators import tap_operators, transformed
from layers.templates.transforms import Transform, parameter_shape

__all__ = ["fit_transforms", "least_squares_gains", "transform_residuals"]

_ANGLES = 64
_STEPS = 60
_RATE = 0.02
_SHIFTS = (-0.5, 0.0, 0.5)


@torch.no_grad()
def fit_transforms(transform: Transform, base: Tensor, target: Tensor) -> Tensor:
    """Return parameters (R, G, *parameter_shape) that bring templates (R, G, C, K_y, K_x) near to target filters."""
    kernel = (base.shape[-2], base.shape[-1])
    if transform == "scalar":
        return least_squares_gains(base, target)
    if transform == "zero" or not len(base):
        return target.new_zeros(*base.shape[:2], *parameter_shape(transform, kernel))
    parameters, *_ = _best_of(_grid(transform), transform, base.double(), target.double())
    if transform == "affine":
        parameters = _descend(parameters, base.double(), target.double())
    return parameters.to(target.dtype)


@torch.no_grad()
def transform_residuals(transform: Transform, templates: Tensor, target: Tensor) -> Tensor:
    """Return the error of each template (G, M, C, K_y, K_x) for each target filter (R, G, C, K_y, K_x), (R, M) float64.

    It is the squared error at the best gains, less the filter's own square. For other transforms, since the scale of a
    filter means little before a norm, it is that of the nearest transform in a grid with one best gain for all taps.
    """
    templates, target = templates.double(), target.double()
    if transform == "scalar":
        products = torch.einsum("rgck,gmck->rmgk", target.flatten(-2), templates.flatten(-2))
        gains, energy = _gains(products, (templates * templates).sum(2).flatten(-2).transpose(0, 1))
        return -(gains.square() * energy).sum((2, 3))
    if transform == "zero" or not len(target):
        return target.new_zeros(len(target), templates.shape[1])
    grid, columns = _grid(transform), []
    for template in templates.unbind(1):
        _, product, energy = _best_of(grid, transform, template[None], target)
        columns.append(product.sum(1).clamp(min=0).square() / energy.sum(1).clamp(min=1e-300))
    return -torch.stack(columns, 1)


def least_squares_gains(base: Tensor, target: Tensor) -> Tensor:
    """Return the gains (R, G, K_y, K_x) that bring templates (R, G, C, K_y, K_x) nearest to target filters.

    The taps separate: each gain is <w, b> / <b, b> over the channels. A tap at which the template is zero, or has only
    what rounding leaves of zero when the terms of a series cancel, gets the gain zero: the quotient there means nothing
    and overflows.
    """
    base, pruned = base.double().flatten(-2), target.double().flatten(-2)
    gains, _ = _gains((pruned * base).sum(2), (base * base).sum(2))
    return gains.unflatten(-1, target.shape[-2:]).to(target.dtype)


def _gains(products: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
    """Return <w, b> / <b, b> of (..., T) products and energies, zero if b is only rounding; and the energies."""
    present = energy > 1e-12 * energy.amax(-1, keepdim=True)
    return torch.where(present, products / energy.where(present, 1.0), 0.0), energy


def _grid(transform: Transform) -> Tensor:
    """Return the parameters that are tried, identity first."""
    angles = torch.arange(_ANGLES, dtype=torch.float64) * (2 * math.pi / _ANGLES)
    if transform == "rotation":
        return angles[:, None]
    cos, sin = angles[::4].cos(), angles[::4].sin()
    turned = torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)
    mirror = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    matrices = []
    for linear, shift in itertools.product((turned, turned @ mirror), itertools.product(_SHIFTS, _SHIFTS)):
        column = torch.tensor(shift, dtype=torch.float64).view(1, 2, 1).expand(len(linear), 2, 1)
        matrices.append(torch.cat([linear, column], 2))
    grid = torch.cat(matrices)
    return grid[grid[:, :, 2].abs().sum(1).argsort(stable=True)]


def _best_of(grid: Tensor, transform: Transform, base: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the grid's parameters of least squared error for each filter and its template, or the only template.

    Also return the product of the filter and the template transformed by them, and the square of the latter.
    """
    kernel = (base.shape[-2], base.shape[-1])
    grid = grid.to(base.device)
    operators = tap_operators(transform, grid, kernel)
    base, target = base.flatten(-2), target.flatten(-2)
    products = torch.einsum("rgcl,rgck->rglk", target, base)  # <w[l], b[k]>
    energies = torch.einsum("rgck,rgcj->rgkj", base, base)
    product = torch.einsum("alk,rglk->rga", operators, products)
    energy = torch.einsum("alk,rgkj,alj->rga", operators, energies, operators)
    best = (energy - 2 * product).argmin(-1)
    index = best[..., None]
    return grid[best], product.gather(-1, index)[..., 0], energy.expand_as(product).gather(-1, index)[..., 0]


def _descend(start: Tensor, base: Tensor, target: Tensor) -> Tensor:
    """Minimize each filter's squared error by Adam from the start; return the best parameters that it passed."""
    best = start.clone()
    least = torch.full(start.shape[:2], math.inf, dtype=start.dtype, device=start.device)
    with torch.enable_grad():
        parameters = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([parameters], lr=_RATE)
        for _ in range(_STEPS):
            errors = (transformed("affine", base, parameters) - target).square().sum((2, 3, 4))
            better = errors.detach() < least
            best[better] = parameters.detach()[better]
            least = torch.where(better, errors.detach(), least)
            scale = target.square().sum((2, 3, 4)).clamp(min=1e-300)
            optimizer.zero_grad()
            (errors / scale).sum().backward()
            optimizer.step()
    return best
