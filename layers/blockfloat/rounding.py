"""Block floating point: values of a block share one exponent, each has a sign and a mantissa.

Costain & Prisacariu, appendix C (7 exponent bits, block size 1, straight-through gradient), after Song et al. 2018
and Drumond et al. 2018. A value is sign * m * 2^(e - b + 1) with a b-bit integer mantissa m < 2^b, written without
hidden bits, so that b = 8 and block size 1 take 16 bits a value as in the paper's table 4.

Our choices where the paper is silent: rounding to nearest even; e is the exponent of the block's *rounded* largest
magnitude, so that nothing saturates and block size 1 is ordinary rounding to b significant bits. With 7 exponent bits
e is -64 .. 63: a block whose largest magnitude is below 2^-64 becomes zero; one that holds NaN, infinity or a value
that rounds to 2^64 becomes NaN. Zeros have no sign. `BlockFormat.axis` says which values make a block. Quantizing twice
changes nothing.

Stochastic rounding, for training, rounds up with a probability equal to the part that is cut off, so that its mean is
the value itself (to 2^-24 of a step). The grid must not depend on the draw: in blocks of more than one value e is the
exponent of the largest magnitude rounded *up*. A value that could round to 2^64 becomes NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from layers.blockfloat import kernels
from layers.blockfloat.format import ROUNDINGS, BlockFormat, Rounding, ScaledFormat
from layers.blockfloat.reference import cut_blocks, join_blocks, round_reference
from layers.blockfloat.scaled import round_scaled
from layers.errors import UsageError

__all__ = [
    "BlockFormat",
    "cut_blocks",
    "join_blocks",
    "power_of_two",
    "quantize",
    "round_reference",
]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, form: BlockFormat | ScaledFormat, rounding: Rounding) -> Tensor:
        if isinstance(form, ScaledFormat):
            return round_scaled(x, form, rounding)
        return _in_memory_order(x, form, rounding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0], None, None


def quantize(x: Tensor, form: BlockFormat | ScaledFormat, rounding: Rounding = "nearest") -> Tensor:
    """Round `x` to its format, in its shape and dtype; the gradient passes straight through.

    Stochastic rounding draws from PyTorch's global generator of the device.
    """
    if rounding not in ROUNDINGS:
        raise UsageError(f"rounding (={rounding!r}) must be one of {', '.join(ROUNDINGS)}")
    quantized: Tensor = _StraightThrough.apply(x, form, rounding)
    return quantized


def _in_memory_order(x: Tensor, form: BlockFormat, rounding: Rounding) -> Tensor:
    """Round, and keep channels last if blocks allow it, that is if they are runs of channels or single values."""
    keeps_layout = form.block == 1 or form.axis == "channel"
    if keeps_layout and x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        pixels = x.permute(0, 2, 3, 1)
        return _round(pixels.flatten(0, 2), form, rounding).view(pixels.shape).permute(0, 3, 1, 2)
    return _round(x.contiguous(), form, rounding)


def _round(x: Tensor, form: BlockFormat, rounding: Rounding) -> Tensor:
    """Round a contiguous tensor into a new one."""
    if rounding == "stochastic":
        return _round_at_random(x.float(), form).to(x.dtype)
    if kernels.is_supported(x):
        rounded = torch.empty_like(x)
        kernels.round_into(rounded, x, form)
        return rounded
    return round_reference(x, form)


def _round_at_random(x: Tensor, form: BlockFormat) -> Tensor:
    blocks = cut_blocks(x, form)
    largest = blocks.abs().amax(2, keepdim=True)
    upwards = 0 if form.block == 1 else (1 << (24 - form.bits)) - 1
    exponents = ((largest.view(torch.int32) + upwards) >> 23) - 127
    steps = exponents.clamp(form.lowest, -form.lowest - 1) - form.bits + 1
    scaled = blocks * power_of_two(-steps)
    whole = scaled.floor()
    whole += torch.rand_like(scaled) < scaled - whole
    rounded = (whole * power_of_two(steps)).masked_fill(largest < 2.0**form.lowest, 0.0)
    most = (2.0**form.bits - 1) * 2.0 ** (-form.lowest - form.bits)
    return join_blocks(rounded.masked_fill(~(largest <= most), torch.nan), x.shape, form)


def power_of_two(exponents: Tensor) -> Tensor:
    """Return 2^exponents in float32, exact for exponents in -126..127, which are written into the exponent field."""
    return ((exponents.to(torch.int32) + 127) << 23).view(torch.float32)
