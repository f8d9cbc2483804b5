"""Whole numbers with one real scale a filter: what integer runtimes hold of a convolution as it is.

A value is sign * m * s with a b-bit magnitude m < 2^b and a scale s > 0 of its filter (the first dimension), symmetric
about zero: with b = 3 the integers -7 .. 7 of 4 bits, with b = 7 the -127 .. 127 of 8. The scale is a bfloat16, the
filter's largest magnitude divided by 2^b - 1 and rounded to nearest even. With b <= 7 that rounding is too small to
move the largest value off 2^b - 1, and m s is exact in float32, so rounding twice changes nothing.

A filter whose largest magnitude is below 2^-64 becomes zero; one that holds NaN, infinity or 2^64 becomes NaN. Zeros
have no sign. Stochastic rounding keeps to the same scales, so that a value near the largest never rounds beyond it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layers.blockfloat.format import Rounding, ScaledFormat
from layers.errors import OvertoneError

__all__ = ["from_codes", "round_scaled", "to_codes"]

_LEAST, _MOST = 2.0**-64, 2.0**64
"""What the largest magnitude of a filter is at least, and less than."""


def round_scaled(x: Tensor, form: ScaledFormat, rounding: Rounding = "nearest") -> Tensor:
    """Round each filter of `x` (N, ...) in float32, then return to its type."""
    scales = _broadcast(_scales(x.float(), form), x)
    steps = x.float() / scales
    whole = steps.round() if rounding == "nearest" else (steps + torch.rand_like(steps)).floor()
    rounded = whole.clamp(-form.highest, form.highest) * scales + 0.0
    return rounded.masked_fill(scales == torch.inf, 0.0).to(x.dtype)


def to_codes(x: Tensor, form: ScaledFormat) -> tuple[Tensor, Tensor]:
    """Return the codes (values,) int64 of rounded values `x` (N, ...), sign and magnitude, and the scales (N,).

    The scale of a filter of zeros is zero. Raises `OvertoneError` if `x` holds a value that is not finite.
    """
    if not torch.isfinite(x).all():
        raise OvertoneError("values must be finite and below 2^64")
    scales = _scales(x, form)
    whole = (x / _broadcast(scales, x)).flatten().long()
    codes = whole.abs() | ((whole < 0).long() << form.bits)
    return codes, scales.masked_fill(scales == torch.inf, 0.0).bfloat16()


def from_codes(codes: Tensor, scales: Tensor, form: ScaledFormat, shape: torch.Size) -> Tensor:
    """Return the float32 tensor of `shape` that `to_codes` was given.

    Raises `OvertoneError` unless each filter makes use of its scale, as every rounded one does.
    """
    magnitude = codes & form.highest
    whole = torch.where(codes >> form.bits > 0, -magnitude, magnitude).view(shape)
    values = whole * _broadcast(scales.float(), whole)
    used = whole.flatten(1).abs().amax(1) == form.highest
    largest = form.highest * scales.float()
    if not torch.where(used, (largest >= _LEAST) & (largest < _MOST), values.flatten(1).eq(0).all(1)).all():
        raise OvertoneError(f"the largest magnitude of each filter must be {form.highest} of its scale, or all be 0")
    return values


def _scales(x: Tensor, form: ScaledFormat) -> Tensor:
    """Return the scale of each filter (N,): infinite for what becomes zero, NaN for what cannot be held."""
    largest = x.flatten(1).abs().amax(1)
    scales = (largest / form.highest).bfloat16().float()
    return scales.masked_fill(largest < _LEAST, torch.inf).masked_fill(~(largest < _MOST), torch.nan)


def _broadcast(scales: Tensor, like: Tensor) -> Tensor:
    return scales.view(len(scales), *[1] * (like.dim() - 1))
