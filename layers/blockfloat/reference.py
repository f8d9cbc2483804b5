"""Rounding to block floating point in plain PyTorch, to nearest even: the definition that our kernels must equal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.blockfloat.format import BlockFormat

__all__ = ["cut_blocks", "join_blocks", "round_reference"]


def round_reference(x: Tensor, form: BlockFormat) -> Tensor:
    """Round a contiguous tensor to nearest even, on any device; types other than float32 are rounded as float32."""
    rounded = _round_each(x.float(), form) if form.block == 1 else _round_blocks(x.float(), form)
    return rounded.to(x.dtype)


def _round_each(x: Tensor, form: BlockFormat) -> Tensor:
    """Round blocks of one value to b significant bits, by integer arithmetic on bit patterns."""
    drop = 24 - form.bits
    rounded = F.hardshrink(x, 2.0**form.lowest * (1 - 2.0**-24))
    patterns = rounded.view(torch.int32)
    patterns = (patterns + _odd(patterns, form) + ((1 << (drop - 1)) - 1)) & -(1 << drop)
    return patterns.view(torch.float32).masked_fill(~(x.abs() < _overflow(form)), torch.nan)


def _round_blocks(x: Tensor, form: BlockFormat) -> Tensor:
    """Round blocks of any size: an anchor of 1.5 * 2^(e - b + 24) leaves a sum no bits below the step 2^(e - b + 1)."""
    blocks = cut_blocks(x, form)
    largest = blocks.abs().amax(2, keepdim=True)
    patterns, drop = largest.view(torch.int32), 24 - form.bits
    exponents = (patterns + _odd(patterns, form) + ((1 << (drop - 1)) - 1)) >> 23
    anchors = (((exponents + drop) << 23) + (1 << 22)).view(torch.float32)
    rounded = ((blocks + anchors) - anchors).masked_fill(largest < 2.0**form.lowest, 0.0)
    return join_blocks(rounded.masked_fill(~(largest < _overflow(form)), torch.nan), x.shape, form)


def _odd(patterns: Tensor, form: BlockFormat) -> Tensor | int:
    """Return 1 where the last digit that stays is odd, so that a tie is rounded up: a single digit always is."""
    return 1 if form.bits == 1 else (patterns >> (24 - form.bits)) & 1


def _overflow(form: BlockFormat) -> float:
    """Return the least magnitude that rounds to more than the largest exponent can hold."""
    return (2.0**form.bits - 0.5) * 2.0 ** (-form.lowest - form.bits)


def cut_blocks(x: Tensor, form: BlockFormat) -> Tensor:
    """Cut a contiguous tensor into blocks (outer, blocks, block, inner), short ones filled with zeros."""
    outer, length, inner = form.runs(x.shape)
    blocks = -(-length // form.block)
    missing = blocks * form.block - length
    runs = x.view(outer, length, inner)
    return (F.pad(runs, (0, 0, 0, missing)) if missing else runs).view(outer, blocks, form.block, inner)


def join_blocks(blocks: Tensor, shape: torch.Size, form: BlockFormat) -> Tensor:
    """Return the tensor of this shape that `cut_blocks` cut into these blocks."""
    return blocks.flatten(1, 2)[:, : form.runs(shape)[1]].contiguous().view(shape)
