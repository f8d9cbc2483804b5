"""Where transforms start: at the parameters that bring templates nearest to the filters they are to rebuild.

Gains have a closed form, tap by tap. Angles and matrices have not: the best of a grid is taken (angles; and for
matrices mirrored and shifted templates too), then matrices go down the gradient from there, all filters at once. Both
are deterministic.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from layers.templates.transforms import Transform, parameter_shape, tap_operators, transformed

__all__ = ["fit_transforms", "least_squares_gains", "transform_residuals"]

_ANGLES = 64
_STEPS, _RATE = 60, 0.02
_SHIFTS = (-0.5, 0.0, 0.5)


@torch.no_grad()
def fit_transforms(transform: Transform, base: Tensor, wanted: Tensor) -> Tensor:
    """Parameters (R, G, *parameter_shape) that bring templates (R, G, C, K_y, K_x) near to filters of that shape."""
    kernel = (base.shape[-2], base.shape[-1])
    if transform == "scalar":
        return least_squares_gains(base, wanted)
    if transform == "zero" or not len(base):
        return wanted.new_zeros(*base.shape[:2], *parameter_shape(transform, kernel))
    found, *_ = _best_of(_grid(transform), transform, base.double(), wanted.double())
    if transform == "affine":
        found = _descend(found, base.double(), wanted.double())
    return found.to(wanted.dtype)


@torch.no_grad()
def transform_residuals(transform: Transform, templates: Tensor, wanted: Tensor) -> Tensor:
    """What each template (G, M, C, K_y, K_x) leaves of each filter (R, G, C, K_y, K_x), float64 (R, M).

    That is the squared error at the best gains; or, since the scale of a filter means little before a norm, at the best
    gain of all taps and the transform that is nearest in a grid; less the filter's own square.
    """
    templates, wanted = templates.double(), wanted.double()
    if transform == "scalar":
        products = torch.einsum("rgck,gmck->rmgk", wanted.flatten(-2), templates.flatten(-2))
        gains, energy = _gains(products, (templates * templates).sum(2).flatten(-2).transpose(0, 1))
        return -(gains.square() * energy).sum((2, 3))
    if transform == "zero" or not len(wanted):
        return wanted.new_zeros(len(wanted), templates.shape[1])
    grid, columns = _grid(transform), []
    for template in templates.unbind(1):
        _, product, energy = _best_of(grid, transform, template[None], wanted)
        columns.append(product.sum(1).clamp(min=0).square() / energy.sum(1).clamp(min=1e-300))
    return -torch.stack(columns, 1)


def least_squares_gains(base: Tensor, wanted: Tensor) -> Tensor:
    """Gains (R, G, K_y, K_x) that bring templates (R, G, C, K_y, K_x) nearest to filters of that shape.

    The taps separate: each gain is <w, b> / <b, b> over the channels. A tap at which the template is zero, or what
    rounding leaves of zero (where the terms of a series cancel), gets the gain zero: the quotient there means nothing
    and overflows.
    """
    base, pruned = base.double().flatten(-2), wanted.double().flatten(-2)
    gains, _ = _gains((pruned * base).sum(2), (base * base).sum(2))
    return gains.unflatten(-1, wanted.shape[-2:]).to(wanted.dtype)


def _gains(products: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
    """<w, b> / <b, b> of (..., T) products and energies, zero where nothing but rounding is left of b; and energies."""
    present = energy > 1e-12 * energy.amax(-1, keepdim=True)
    return torch.where(present, products / energy.where(present, 1.0), 0.0), energy


def _grid(transform: Transform) -> Tensor:
    """Parameters to begin with, identity first."""
    angles = torch.arange(_ANGLES, dtype=torch.float64) * (2 * math.pi / _ANGLES)
    if transform == "rotation":
        return angles[:, None]
    cos, sin = angles[::4].cos(), angles[::4].sin()
    turned = torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)
    mirror = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    found = []
    for linear, shift in itertools.product((turned, turned @ mirror), itertools.product(_SHIFTS, _SHIFTS)):
        column = torch.tensor(shift, dtype=torch.float64).view(1, 2, 1).expand(len(linear), 2, 1)
        found.append(torch.cat([linear, column], 2))
    grid = torch.cat(found)
    return grid[grid[:, :, 2].abs().sum(1).argsort(stable=True)]


def _best_of(grid: Tensor, transform: Transform, base: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each template (or the only one) and filter the grid's parameters of least squared error.

    With the product of the filter and the template so transformed, and the square of that.
    """
    kernel = (base.shape[-2], base.shape[-1])
    grid = grid.to(base.device)
    operators = tap_operators(transform, grid, kernel)
    base, wanted = base.flatten(-2), wanted.flatten(-2)
    products = torch.einsum("rgcl,rgck->rglk", wanted, base)  # <w[l], b[k]>
    energies = torch.einsum("rgck,rgcj->rgkj", base, base)
    gained = torch.einsum("alk,rglk->rga", operators, products)
    length = torch.einsum("alk,rgkj,alj->rga", operators, energies, operators)
    best = (length - 2 * gained).argmin(-1)
    at = best[..., None]
    return grid[best], gained.gather(-1, at)[..., 0], length.expand_as(gained).gather(-1, at)[..., 0]


def _descend(start: Tensor, base: Tensor, wanted: Tensor) -> Tensor:
    """Adam from the start on each filter's squared error; of each the best place that it came by."""
    best, least = start.clone(), torch.full(start.shape[:2], math.inf, dtype=start.dtype, device=start.device)
    with torch.enable_grad():
        parameters = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([parameters], lr=_RATE)
        for _ in range(_STEPS):
            errors = (transformed("affine", base, parameters) - wanted).square().sum((2, 3, 4))
            better = errors.detach() < least
            best[better], least = parameters.detach()[better], torch.where(better, errors.detach(), least)
            scale = wanted.square().sum((2, 3, 4)).clamp(min=1e-300)
            optimizer.zero_grad()
            (errors / scale).sum().backward()
            optimizer.step()
    return best
