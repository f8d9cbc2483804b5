"""How sure a measured accuracy is: the Wilson score interval of a share of n images."""

from math import sqrt

from layers.errors import UsageError

__all__ = ["wilson_interval"]

_Z = 1.959963984540054  # two-sided 95 % of the normal distribution


def wilson_interval(fraction: float, n: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy that was measured on `n` images, within [0, 1].

    It covers the images' chance alone: not the seed of the training, nor the choice of the best of many trials.
    """
    if not 0 <= fraction <= 1 or n < 1:
        raise UsageError(f"an interval needs a fraction from 0 to 1 and n of at least 1, got {fraction} and {n}")
    spread = _Z * _Z / n
    center = (fraction + spread / 2) / (1 + spread)
    half = _Z * sqrt(fraction * (1 - fraction) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, center - half), min(1.0, center + half)
