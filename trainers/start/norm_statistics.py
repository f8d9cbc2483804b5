"""What a norm behind compressed layers takes as its statistics, from the inputs of both networks on a few images.

The trained statistics are of far more images than are seen here, and help as a control variate does. How far those of
the original's inputs on these images are off is known, and the compressed network's are off in the same way as far as
the two inputs agree, by the correlation r of a channel. If nothing has changed (r = 1) the statistics stay; if nothing
is left of the original (r = 0) they are those of these images. A channel that does not vary on these images in either
network (behind dead inputs) has no correlation: its mean moves as the constant does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["InputMoments", "NormStatistics", "corrected_statistics"]


@dataclass(frozen=True, kw_only=True)
class InputMoments:
    """Moments (C,) of a norm's inputs, float64: in the compressed network, in the original one, and of both."""

    count: int
    """Values of a channel."""
    mean: Tensor
    original_mean: Tensor
    square: Tensor
    """Mean square."""
    original_square: Tensor
    product: Tensor
    """Mean product of both networks' inputs."""


NormStatistics = Callable[[InputMoments, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From the moments of the inputs, and the mean and variance of training, to the mean and variance of the norm."""


def corrected_statistics(moments: InputMoments, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and variance (C,) of a norm whose `mean` and `variance` were trained in the original network."""
    spread = _variance(moments.square, moments.mean)
    original_spread = _variance(moments.original_square, moments.original_mean)
    constant = (spread == 0) & (original_spread == 0)
    covariance = moments.product - moments.mean * moments.original_mean
    slope = _quotient(covariance, original_spread).where(~constant, 1.0)
    r_squared = _quotient(slope.square() * original_spread, spread).clamp(0, 1)
    unbias = moments.count / max(moments.count - 1, 1)
    error = _quotient(variance, original_spread * unbias).where(original_spread > 0, 1.0)
    corrected_mean = moments.mean + slope * (mean - moments.original_mean)
    corrected_variance = (spread * unbias * error.clamp(min=0) ** r_squared).where(~constant, variance)
    return corrected_mean, corrected_variance


def _variance(square: Tensor, mean: Tensor) -> Tensor:
    """Return variances, zero if they are no more than float32 leaves of a constant."""
    variance = square - mean.square()
    return variance.where(variance > 1e-12 * square, 0.0)


def _quotient(x: Tensor, y: Tensor) -> Tensor:
    """Return quotients, zero where y is not positive."""
    return torch.where(y > 0, x / y.where(y > 0, 1.0), 0.0)
