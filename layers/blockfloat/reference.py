"""Rounding to block floating point in plain PyTorch, nearest even: on any device, and what our kernels must equal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.blockfloat.format import BlockFormat

__all__ = ["cut_blocks", "join_blocks", "round_reference"]


def round_reference(x: Tensor, form: BlockFormat) -> Tensor:
    """A contiguous tensor rounded to nearest even in plain PyTorch, on any device, as float32 if it is another type."""
    rounded = _round_each(x.float(), form) if form.block == 1 else _round_blocks(x.float(), form)
    return rounded.to(x.dtype)


def _round_each(x: Tensor, form: BlockFormat) -> Tensor:
    """Block size 1: rounded to b significant bits, by integer arithmetic on bit patterns."""
    drop = 24 - form.bits
    rounded = F.hardshrink(x, 2.0**form.lowest * (1 - 2.0**-24))
    patterns = rounded.view(torch.int32)
    patterns += ((patterns >> drop) & 1).add_((1 << (drop - 1)) - 1)
    patterns &= -(1 << drop)
    return rounded.masked_fill_(~(x.abs() < _overflow(form)), torch.nan)


def _round_blocks(x: Tensor, form: BlockFormat) -> Tensor:
    """Any block size: an anchor of 1.5 * 2^(e - b + 24) leaves a sum no bits below the step 2^(e - b + 1)."""
    blocks = cut_blocks(x, form)
    largest = blocks.abs().amax(2, keepdim=True)
    patterns, drop = largest.view(torch.int32), 24 - form.bits
    exponents = (patterns + ((patterns >> drop) & 1) + ((1 << (drop - 1)) - 1)) >> 23
    anchors = (((exponents + drop) << 23) + (1 << 22)).view(torch.float32)
    rounded = ((blocks + anchors) - anchors).masked_fill(largest < 2.0**form.lowest, 0.0)
    return join_blocks(rounded.masked_fill(~(largest < _overflow(form)), torch.nan), x.shape, form)


def _overflow(form: BlockFormat) -> float:
    """The least magnitude that rounds to more than the largest exponent can hold."""
    return (2.0**form.bits - 0.5) * 2.0 ** (-form.lowest - form.bits)


def cut_blocks(x: Tensor, form: BlockFormat) -> Tensor:
    """A contiguous tensor as blocks (outer, blocks, block, inner), short ones filled with zeros."""
    outer, length, inner = form.runs(x.shape)
    blocks = -(-length // form.block)
    runs, short = x.view(outer, length, inner), blocks * form.block - length
    return (F.pad(runs, (0, 0, 0, short)) if short else runs).view(outer, blocks, form.block, inner)


def join_blocks(blocks: Tensor, shape: torch.Size, form: BlockFormat) -> Tensor:
    """The tensor of this shape that was cut into such blocks."""
    return blocks.flatten(1, 2)[:, : form.runs(shape)[1]].contiguous().view(shape)
