"""Block floating point: values of a block share one exponent, each has a sign and a mantissa.

Costain & Prisacariu, appendix C (7 exponent bits, block size 1, straight-through gradient), after Song et al. 2018
and Drumond et al. 2018. A value is sign * m * 2^(e - b + 1) with a b-bit integer mantissa m < 2^b, written without
hidden bits, so that b = 8 and block size 1 take 16 bits a value as in the paper's table 4.

Our choices, where the paper is silent: rounding to nearest even; e is the exponent of the block's *rounded* largest
magnitude, so that nothing saturates and block size 1 is ordinary rounding to b significant bits. With 7 exponent bits
e is -64 .. 63: a block whose largest magnitude is below 2^-64 becomes zero, one that holds NaN, infinity or what rounds
to 2^64 becomes NaN. Blocks are consecutive values of the flattened tensor. Quantising twice changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from layers.errors import OvertoneError, UsageError

__all__ = ["BlockFormat", "pack_blocks", "pack_codes", "quantise", "unpack_blocks", "unpack_codes"]


@dataclass(frozen=True, kw_only=True)
class BlockFormat:
    """How a tensor is held in block floating point."""

    bits: int
    """Mantissa bits, 2..16, sign not counted."""
    block: int = 1
    """Values that share an exponent, 1..128."""
    exponent_bits: int = 7
    """Bits of a shared exponent, 2..7."""

    def __post_init__(self) -> None:
        for name, low, high in (("bits", 2, 16), ("block", 1, 128), ("exponent_bits", 2, 7)):
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise UsageError(f"{name} (={value!r}) must be a whole number from {low} to {high}.")

    @property
    def lowest(self) -> int:
        """The smallest shared exponent; the largest is -lowest - 1."""
        return -(1 << (self.exponent_bits - 1))

    def packed_bytes(self, values: int) -> tuple[int, int]:
        """Bytes of `values` packed mantissas with signs, and of their shared exponents."""
        blocks = -(-values // self.block)
        return (values * (1 + self.bits) + 7) // 8, (blocks * self.exponent_bits + 7) // 8


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, form: BlockFormat) -> Tensor:
        if form.block == 1:
            return _round_each(x.float(), form).to(x.dtype)
        mantissas, exponents = _encode(x, form)
        return _decode(mantissas, exponents, form, x.shape).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def quantise(x: Tensor, form: BlockFormat) -> Tensor:
    """`x` rounded to block floating point, same shape and dtype; the gradient passes straight through."""
    quantised: Tensor = _StraightThrough.apply(x, form)
    return quantised


def pack_blocks(x: Tensor, form: BlockFormat) -> tuple[Tensor, Tensor]:
    """Quantise and pack: uint8 bytes of the signed mantissas, and of the shared exponents, most significant bit first.

    Raises `OvertoneError` where `x` holds a value that is not finite or too large for the exponent.
    """
    mantissas, exponents = _encode(x.detach().float().cpu(), form)
    if not torch.isfinite(mantissas).all():
        raise OvertoneError("A tensor that is to be packed holds values that are not finite, or too large.")
    flat = mantissas.flatten()[: x.numel()].to(torch.int64)
    signed = flat.abs() | ((flat < 0).to(torch.int64) << form.bits)
    return pack_codes(signed, form.bits + 1), pack_codes(exponents.long().flatten() - form.lowest, form.exponent_bits)


def unpack_blocks(mantissas: Tensor, exponents: Tensor, form: BlockFormat, shape: torch.Size) -> Tensor:
    """The float32 tensor of `shape` that `pack_blocks` packed."""
    values = shape.numel()
    signed = unpack_codes(mantissas, form.bits + 1, values)
    magnitude = signed & ((1 << form.bits) - 1)
    flat = torch.where(signed >> form.bits > 0, -magnitude, magnitude).float()
    blocks = -(-values // form.block)
    flat = F.pad(flat, (0, blocks * form.block - values)).view(blocks, form.block)
    return _decode(flat, unpack_codes(exponents, form.exponent_bits, blocks)[:, None] + form.lowest, form, shape)


def _encode(x: Tensor, form: BlockFormat) -> tuple[Tensor, Tensor]:
    """Signed mantissas (blocks, block) as float32 integers, and exponents (blocks, 1)."""
    flat = x.detach().float().flatten()
    blocks = -(-flat.numel() // form.block)
    flat = F.pad(flat, (0, blocks * form.block - flat.numel())).view(blocks, form.block)
    largest = flat.abs().amax(1, keepdim=True)
    exponents = (torch.frexp(largest).exponent - 1).clamp(form.lowest, -form.lowest)
    exponents += torch.round(largest * _power_of_two(form.bits - 1 - exponents)) >= 2**form.bits
    mantissas = torch.round(flat * _power_of_two(form.bits - 1 - exponents))
    mantissas = mantissas.masked_fill(largest < 2.0**form.lowest, 0.0)
    return mantissas.masked_fill(~(largest < _overflow(form)), torch.nan), exponents.masked_fill(
        largest < 2.0**form.lowest, form.lowest
    )


def _round_each(x: Tensor, form: BlockFormat) -> Tensor:
    """Block size 1: float32 `x` rounded to b significant bits, by integer arithmetic on its bit patterns."""
    drop = 24 - form.bits
    rounded = F.hardshrink(x, 2.0**form.lowest * (1 - 2.0**-24))
    patterns = rounded.view(torch.int32)
    patterns += ((patterns >> drop) & 1).add_((1 << (drop - 1)) - 1)
    patterns &= -(1 << drop)
    return rounded.masked_fill_(~(x.abs() < _overflow(form)), torch.nan)


def _overflow(form: BlockFormat) -> float:
    """The least magnitude that rounds to more than the largest exponent can hold."""
    return (2.0**form.bits - 0.5) * 2.0 ** (-form.lowest - form.bits)


def _decode(mantissas: Tensor, exponents: Tensor, form: BlockFormat, shape: torch.Size) -> Tensor:
    return (mantissas * _power_of_two(exponents - form.bits + 1)).flatten()[: shape.numel()].view(shape)


def _power_of_two(exponents: Tensor) -> Tensor:
    """2^exponents in float32, exact: written into the exponent field, for exponents in -126..127."""
    return ((exponents.to(torch.int32) + 127) << 23).view(torch.float32)


def pack_codes(codes: Tensor, width: int) -> Tensor:
    """Whole numbers (n,) below 2^width as uint8 bytes, most significant bit first."""
    shifts = np.arange(width - 1, -1, -1)
    bits: npt.NDArray[np.uint8] = ((codes.numpy()[:, None] >> shifts) & 1).astype(np.uint8)
    return torch.from_numpy(np.packbits(bits))


def unpack_codes(packed: Tensor, width: int, count: int) -> Tensor:
    """The int64 numbers (count,) that `pack_codes` packed."""
    bits = np.unpackbits(packed.numpy(), count=count * width).reshape(count, width).astype(np.int64)
    return torch.from_numpy(bits @ (1 << np.arange(width - 1, -1, -1)))
