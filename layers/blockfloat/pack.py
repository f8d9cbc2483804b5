"""Block floating point as bytes: the signed mantissas of all values, and the shared exponents of all blocks.

Values come in the tensor's order, each as its sign and then its mantissa; exponents, less the lowest, in the order of
the blocks' first values. Both are packed without gaps, the most significant bit first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from layers.blockfloat import power_of_two, quantize
from layers.blockfloat.format import BlockFormat
from layers.blockfloat.reference import cut_blocks, join_blocks
from layers.errors import OvertoneError

__all__ = ["block_codes", "pack_blocks", "pack_codes", "unpack_blocks", "unpack_codes"]


def pack_blocks(x: Tensor, form: BlockFormat) -> tuple[Tensor, Tensor]:
    """Quantize and pack to uint8 bytes of the signed mantissas, and of the shared exponents.

    Raises what `block_codes` raises.
    """
    signed, exponents = block_codes(x, form)
    return pack_codes(signed, form.bits + 1), pack_codes(exponents, form.exponent_bits)


def block_codes(x: Tensor, form: BlockFormat) -> tuple[Tensor, Tensor]:
    """Quantize to the numbers that are packed, (n,) int64: signed mantissas, and shared exponents less the lowest.

    Raises `OvertoneError` if `x` holds a value that is not finite or too large for the exponent.
    """
    blocks = cut_blocks(quantize(x.detach().float().cpu().contiguous(), form), form)
    if not torch.isfinite(blocks).all():
        raise OvertoneError("values must be finite and within the range of the exponent")
    largest = blocks.abs().amax(2, keepdim=True)
    exponents = (torch.frexp(largest).exponent - 1).masked_fill(largest == 0, form.lowest)
    whole = join_blocks(blocks * power_of_two(form.bits - 1 - exponents), x.shape, form).flatten().long()
    signed = whole.abs() | ((whole < 0).long() << form.bits)
    return signed, exponents.flatten().long() - form.lowest


def unpack_blocks(mantissas: Tensor, exponents: Tensor, form: BlockFormat, shape: torch.Size) -> Tensor:
    """Return the float32 tensor of `shape` that `pack_blocks` packed."""
    signed = unpack_codes(mantissas, form.bits + 1, shape.numel())
    magnitude = signed & ((1 << form.bits) - 1)
    whole = torch.where(signed >> form.bits > 0, -magnitude, magnitude).float()
    outer, length, inner = form.runs(shape)
    counts = (outer, -(-length // form.block), 1, inner)
    steps = unpack_codes(exponents, form.exponent_bits, torch.Size(counts).numel()) + form.lowest - form.bits + 1
    return join_blocks(cut_blocks(whole.view(shape), form) * power_of_two(steps.view(counts)), shape, form)


def pack_codes(codes: Tensor, width: int) -> Tensor:
    """Pack whole numbers (n,) below 2^width into uint8 bytes, most significant bit first."""
    shifts = np.arange(width - 1, -1, -1)
    bits: npt.NDArray[np.uint8] = ((codes.numpy()[:, None] >> shifts) & 1).astype(np.uint8)
    return torch.from_numpy(np.packbits(bits))


def unpack_codes(packed: Tensor, width: int, count: int) -> Tensor:
    """Return the int64 numbers (count,) that `pack_codes` packed."""
    bits = np.unpackbits(packed.numpy(), count=count * width).reshape(count, width).astype(np.int64)
    return torch.from_numpy(bits @ (1 << np.arange(width - 1, -1, -1)))
