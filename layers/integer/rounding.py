"""Rounding to int8 as stock integer kernels have it, in floating point and with gradients that pass straight through.

A filter has one symmetric scale, its largest magnitude over 127: w ~ s c with codes c = -127 .. 127. An activation
tensor has one static scale: x ~ s (c - z) with codes c = 0 .. 255 and the zero point z, 0 where no value is negative
and 128 elsewhere (kernels that multiply unsigned activations with signed weights are the fast ones). Ties go to even.
The gradient is that of the identity (Bengio et al. 2013), for activations 0 where a value lies outside the codes
(Jacob et al. 2018). Codes are kept in floating point, so the same code runs on every device and trains.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = [
    *("ACTIVATION_CODES", "FILTER_CODES", "LEAST_FILTER", "activation_codes", "filter_codes", "round_activation"),
    *("round_filters", "saturate", "zero_point"),
]

FILTER_CODES = 127
"""The largest code of a filter."""
ACTIVATION_CODES = 255
"""The largest code of an activation; the smallest is 0."""
LEAST_FILTER = 1e-30
"""A filter whose largest magnitude is not above this is zero."""
_SIGNED_ZERO = 128


def zero_point(signed: bool) -> int:
    """Return the code of zero in a tensor with or without negative values."""
    return _SIGNED_ZERO if signed else 0


def round_filters(filters: Tensor) -> Tensor:
    """Return filters (N, ...) on the grids of their scales."""
    rounded: Tensor = _Filters.apply(filters)
    return rounded


def round_activation(x: Tensor, grid: Tensor) -> Tensor:
    """Return `x`, in its dtype, on a grid (scale, zero point), saturated at its ends."""
    rounded: Tensor = _Activation.apply(x, grid)
    return rounded


def filter_codes(filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes of filters (N, ...), and their scales (N,)."""
    scales = _filter_scales(filters)
    return (filters / scales).round().clamp(-FILTER_CODES, FILTER_CODES), scales.flatten()


def activation_codes(x: Tensor, grid: Tensor) -> Tensor:
    """Return the codes of `x` on a grid (scale, zero point), less the zero point."""
    scale, zero = grid.unbind()
    return saturate((x.float() / scale).round_(), zero)


def saturate(codes: Tensor, zero: Tensor) -> Tensor:
    """Bound codes, less the zero point, to those that there are, in place; return them.

    Bounds that are tensors would be the same, but CPUs are slow at them.
    """
    return codes.add_(zero).clamp_(0, ACTIVATION_CODES).sub_(zero)


class _Filters(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, filters: Tensor) -> Tensor:
        codes, scales = filter_codes(filters)
        return codes * scales.view(-1, *[1] * (filters.dim() - 1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Tensor) -> Tensor:
        scale, zero = grid.unbind()
        codes = (x.float() / scale).round_()
        if ctx.needs_input_grad[0]:
            unbounded, codes = codes, saturate(codes.clone(), zero)
            ctx.save_for_backward(codes == unbounded)
        else:
            saturate(codes, zero)
        return codes.mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None


def _filter_scales(filters: Tensor) -> Tensor:
    """Return each filter's scale, of shape (N, 1, ..., 1); it is 1 for a filter of zeros."""
    largest = filters.detach().flatten(1).abs().amax(1).view(-1, *[1] * (filters.dim() - 1))
    return torch.where(largest > LEAST_FILTER, largest / FILTER_CODES, 1.0)
