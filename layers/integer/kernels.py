"""What integer kernels compute, to the last bit, for evaluation.

Rounding is chaotic: a sum that is off by a millionth turns one activation in a hundred thousand by a step, and twenty
layers on a per cent of them are turned. So evaluation adds as the kernels do. Codes are multiplied and added exactly
(float32 holds whole numbers below 2^24). Then, with the scales s of the input, c of the filters and r of the output,
and factor a and shift b of a norm:

    e = max(|a| c, |b| 2^-30 / s)                 the filters' scale, so large that the bias has 31 bits
    code = round((sign(a) sum + round(b / (e s))) (s e / r))

Sums of two rounded tensors are rounded with the two scales' ratios, as ONNX Runtime's kernel does on x86. The order of
operations is that of the exported graph (`spaces.portable.integer`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from layers.integer.rounding import ACTIVATION_CODES, saturate

__all__ = ["BIAS_LIMIT", "LEAST_SCALE", "Addition", "Product", "Sums", "fold_norm", "sums_of", "with_sums"]

BIAS_LIMIT = 2.0**-30
LEAST_SCALE = 1e-30


class Sums(Protocol):
    """What a kernel has added, before it rounds."""

    def rounded(self, grid: Tensor) -> Tensor:
        """Return the values on the grid (scale, zero point) of the output."""
        ...


@dataclass(frozen=True)
class Product:
    """Products of an input's codes with filters' codes, added up; (B, N, ...)."""

    sums: Tensor
    input_scale: Tensor
    scales: Tensor
    """Scales (N,) of the filters."""
    factor: Tensor | None = None
    """Factor (N,) of a norm."""
    shift: Tensor | None = None
    """Bias, or shift of a norm, (N,)."""

    def values(self) -> Tensor:
        """Return the outputs unrounded, with the bias."""
        y = self.sums * self._along(self.scales * self.input_scale)
        return y if self.shift is None else y + self._along(self.shift)

    def rounded(self, grid: Tensor) -> Tensor:
        """Return the outputs on a grid."""
        scale, zero = grid.unbind()
        outer = self.scales if self.factor is None else self.factor.abs() * self.scales
        shift = torch.zeros_like(outer) if self.shift is None else self.shift
        scales = outer.maximum(shift.abs() * BIAS_LIMIT / self.input_scale).clamp(min=LEAST_SCALE)
        ratio = outer / scales if self.factor is None else outer / scales * self.factor.sign()
        bias = (shift / (scales * self.input_scale)).round()
        total = (self.sums * self._along(ratio)).add_(self._along(bias))
        codes = total.mul_(self._along(self.input_scale * scales / scale)).round_()
        return saturate(codes, zero).mul_(scale)

    def _along(self, vector: Tensor) -> Tensor:
        """Return a vector (N,) that multiplies the outputs along their channels."""
        return vector.view(-1, *[1] * (self.sums.dim() - 2))


@dataclass(frozen=True)
class Addition:
    """Two rounded tensors, as codes from 0 to 255, to be added."""

    codes: tuple[Tensor, Tensor]
    grids: tuple[Tensor, Tensor]

    def rounded(self, grid: Tensor) -> Tensor:
        """Return the sum on a grid."""
        scale, zero = grid.unbind()
        (scale_a, zero_a), (scale_b, zero_b) = (g.unbind() for g in self.grids)
        ratio_a, ratio_b = scale_a / scale, scale_b / scale
        fixed = zero - (ratio_a * zero_a + ratio_b * zero_b)
        one, other = self.codes
        total = one.double().mul_(ratio_a.double()).add_(fixed.double()).float()  # a fused multiply-add rounds once
        total = other.double().mul_(ratio_b.double()).add_(total.double()).float()
        return total.round_().clamp_(0, ACTIVATION_CODES).sub_(zero).mul_(scale)


def fold_norm(
    product: Product, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float
) -> Product:
    """Return the product behind a norm in evaluation."""
    spread = (variance + eps).sqrt()
    factor = spread.reciprocal() if weight is None else weight / spread
    centered = (mean if product.shift is None else mean - product.shift) * factor
    return replace(product, factor=factor, shift=-centered if bias is None else bias - centered)


def with_sums(y: Tensor, sums: Sums) -> Tensor:
    """Return a tensor that remembers its sums."""
    y.integer_sums = sums  # type: ignore[attr-defined]
    return y


def sums_of(y: Tensor) -> Sums | None:
    """Return the sums that a tensor remembers."""
    found: Sums | None = getattr(y, "integer_sums", None)
    return found
