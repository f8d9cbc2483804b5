"""Rounding that knows the outputs: the error of each value is taken up by those that are not rounded yet.

A layer's outputs are linear in its stored values w (a row for each filter), which multiply inputs of second moments G.
Rounding to q costs the squared error (w - q) G (w - q)^T of the outputs, not that of the values. Frantar et al. 2022
(GPTQ, after OBQ, Frantar & Alistarh 2022, and Hassibi & Stork's optimal brain surgeon) round one column at a time, and
move the others so that the outputs change least:

    q_j = round(w_j),    w_k -= (w_j - q_j) U_jk / U_jj    for the columns k after j,

with the upper Cholesky factor U of the inverse of G. The columns with the largest moments come first, and the diagonal
of G is raised by a hundredth of its mean, both as there. Ours beside it: blocks keep the shared exponents of the
values as they were fitted, one or two lower where saturating the block's largest costs the outputs less than the finer
step saves; and then each value in turn is rounded again with all others as they are (coordinate descent), which only
lowers the error.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from layers.blockfloat.format import BlockFormat
from layers.blockfloat.reference import cut_blocks, join_blocks, round_reference

__all__ = ["block_steps", "round_in_turn"]

_DAMPING = 0.01
_SWEEPS = 3
"""Rounds of coordinate descent at most."""
_COLUMNS = 64
"""Columns whose errors are passed on to those behind them at once."""
_LOWER = 3
"""Exponents that are compared: the block's own, and those below it."""


def block_steps(values: Tensor, weights: Tensor, form: BlockFormat) -> Tensor:
    """Return the step (like `values`) of each value's block: what a mantissa of 1 stands for, 0 where all is zero.

    The exponent of a block is the one that leaves the least squared error of rounding, weighted by `weights`. A block
    whose values are not finite, or too large for an exponent, has NaN.
    """
    blocks = cut_blocks(values.contiguous(), form)
    weighted = cut_blocks(weights.contiguous().to(values.dtype), form)
    most = 2**form.bits - 1
    single = replace(form, block=1, axis="flat")
    largest = round_reference(blocks.abs().amax(2).flatten().float(), single).view_as(blocks[:, :, 0])
    highest = torch.ldexp(torch.ones_like(blocks[:, :, 0]), torch.frexp(largest).exponent - form.bits)
    lowest = 2.0 ** (form.lowest - form.bits + 1)
    steps = torch.where(largest > 0, highest, largest.to(values.dtype))
    best, least = steps, torch.full_like(steps, torch.inf)
    for lower in range(_LOWER):
        tried = (steps * 2.0**-lower).unsqueeze(2)
        rounded = torch.where(tried == 0, 0.0, (blocks / tried).round().clamp(-most, most) * tried)
        error = ((rounded - blocks).square() * weighted).sum(2)
        better = (error < least) & (tried.squeeze(2) >= lowest)
        best, least = torch.where(better, tried.squeeze(2), best), torch.where(better, error, least)
    return join_blocks(best.unsqueeze(2).expand_as(blocks).contiguous(), values.shape, form)


def round_in_turn(values: Tensor, gram: Tensor, steps: Tensor, bits: int) -> Tensor:
    """Return the values (K, R, d), rounded to multiples of their steps (K, R, d), up to 2^bits - 1 of them.

    Each of K parts has moments (d, d) of its own in `gram`.
    """
    order = gram.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    by_column = order[:, None].expand_as(values)
    gram = gram.gather(1, order[:, :, None].expand_as(gram)).gather(2, order[:, None].expand_as(gram))
    turns = _Turns(values.gather(2, by_column), gram, steps.gather(2, by_column), bits)
    turns.pass_errors_on()
    for _ in range(_SWEEPS):
        if not turns.descend():
            break
    return torch.empty_like(values).scatter_(2, by_column, turns.found)


class _Turns:
    """Columns of values (K, R, d) in the order in which they are rounded, a block of them at a time."""

    def __init__(self, values: Tensor, gram: Tensor, steps: Tensor, bits: int) -> None:
        self.found = torch.empty_like(values)
        self._values, self._gram, self._steps = values, gram, steps
        self._most = 2**bits - 1
        energy = gram.diagonal(dim1=1, dim2=2)
        self._damping = torch.where(energy.any(1), _DAMPING * energy.mean(1), 1.0)
        self._curvature = torch.where(energy > 0, energy, 1.0)
        self._blocks = [slice(start, start + _COLUMNS) for start in range(0, values.shape[2], _COLUMNS)]

    def pass_errors_on(self) -> None:
        """Round each column, and move those that are left."""
        damped = self._gram + torch.diag_embed(self._damping[:, None].expand_as(self._curvature))
        factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
        moved = self._values.clone()
        for block in self._blocks:
            columns, within = moved[:, :, block], factor[:, block, block]
            errors = torch.empty_like(columns)
            for j in range(columns.shape[2]):
                rounded = self._rounded(columns[:, :, j], block.start + j)
                self.found[:, :, block.start + j] = rounded
                errors[:, :, j] = (columns[:, :, j] - rounded) / within[:, j, j, None]
                columns[:, :, j + 1 :] -= errors[:, :, j, None] * within[:, None, j, j + 1 :]
            moved[:, :, block.stop :] -= errors @ factor[:, block, block.stop :]

    def descend(self) -> bool:
        """Round each column anew to what is best beside the others; return whether any has changed."""
        slope, changed = (self.found - self._values) @ self._gram, False
        for block in self._blocks:
            found, within = self.found[:, :, block], self._gram[:, block, block]
            before, slopes = found.clone(), slope[:, :, block].clone()
            for j in range(found.shape[2]):
                best = found[:, :, j] - slopes[:, :, j] / self._curvature[:, block.start + j, None]
                best = self._rounded(best, block.start + j)
                slopes += (best - found[:, :, j])[:, :, None] * within[:, None, j]
                found[:, :, j] = best
            change = found - before
            if change.any():
                changed = True
                slope += change @ self._gram[:, block]
        return changed

    def _rounded(self, column: Tensor, index: int) -> Tensor:
        """Round a column (K, R)."""
        steps = self._steps[:, :, index]
        return torch.where(steps == 0, 0.0, (column / steps).round().clamp(-self._most, self._most) * steps)
