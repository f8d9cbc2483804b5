"""How a template becomes another filter: families of cheap spatial transformations, each linear in the template's taps.

Miles & Mikolajczyk, "Reconstructing Pruned Filters using Cheap Spatial Transformations", sections 2.1 and 2.5. A
filter's taps are W[k'] = sum_k S[k', k] B[k], the same for all channels. The operator S (T, T) of a filter with T taps
comes from few parameters:

- `zero`: S = 0. The filter is pruned, its output is zero; the paper's baseline.
- `scalar`: a gain for each tap, S is diagonal.
- `rotation`: one angle, about the filter's middle. The paper writes SO(3); in the plane that is our reading.
- `affine`: a matrix (2, 3), (y, x, 1) -> (y, x) from the middle, in taps. The paper writes GL(3).

The last two move each tap's position and sample the template there, bilinearly and with zeros beyond its edge: at most
four values in a row of S are not zero. At the angle 0 and the matrix (1, 0, 0; 0, 1, 0), S is exactly the identity.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layers.templates.transforms import Transform

__all__ = ["tap_operators", "transformed"]


def transformed(transform: Transform, base: Tensor, parameters: Tensor) -> Tensor:
    """Transform templates (..., C, K_y, K_x) with parameters (..., *parameter_shape)."""
    if transform == "scalar":
        return base * parameters.unsqueeze(-3)
    if transform == "zero":
        return torch.zeros_like(base)
    k_y, k_x = base.shape[-2:]
    operators = tap_operators(transform, parameters, (k_y, k_x))
    return (base.flatten(-2) @ operators.mT.to(base.dtype)).unflatten(-1, (k_y, k_x))


def tap_operators(transform: Transform, parameters: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Return the operators S (..., T, T) of parameters (..., *parameter_shape), T = K_y K_x; differentiable.

    If a position falls on a tap, the derivative is that towards the next one.
    """
    taps = kernel[0] * kernel[1]
    if transform == "zero":
        return parameters.new_zeros(*parameters.shape[:-1], taps, taps)
    if transform == "scalar":
        return parameters.flatten(-2).unsqueeze(-1) * torch.eye(taps, dtype=parameters.dtype, device=parameters.device)
    axes, taps_yx = _tap_positions(kernel, parameters)
    if transform == "rotation":
        quarter = torch.stack([-taps_yx[1], taps_yx[0]])
        turn = torch.cat([parameters.cos(), parameters.sin()], -1)
        positions = (turn @ torch.stack([taps_yx, quarter]).flatten(1)).unflatten(-1, taps_yx.shape)
    else:
        positions = parameters @ torch.cat([taps_yx, torch.ones_like(taps_yx[:1])])
    to_y, to_x = _linear_weights(positions, axes[:, None]).unbind(-3)
    return (to_y[..., : kernel[0], None] * to_x[..., None, : kernel[1]]).flatten(-2)


def _tap_positions(kernel: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return positions from the middle: along y and x, (2, K) with K the larger size; and of all T taps, (2, T)."""
    index = torch.arange(max(kernel), dtype=like.dtype, device=like.device)
    axes = torch.stack([index - (k - 1) / 2 for k in kernel])
    y = axes[0, : kernel[0]]
    x = axes[1, : kernel[1]]
    return axes, torch.stack([y.repeat_interleave(kernel[1]), x.repeat(kernel[0])])


def _linear_weights(positions: Tensor, taps: Tensor) -> Tensor:
    """Return linear weights (..., K) of the taps (..., K), one apart, on both sides of each position (...)."""
    offset = positions.unsqueeze(-1) - taps
    below = offset.detach().floor()
    slope = (below == -1).to(offset.dtype) - (below == 0).to(offset.dtype)
    return torch.addcmul(slope.abs(), slope, offset)
