"""The uncertainty of a measured share of n images: the Wilson score interval."""

from math import sqrt

from layers.errors import UsageError

__all__ = ["wilson_interval"]

_Z = 1.959963984540054  # two-sided 95 % of the normal distribution


def wilson_interval(fraction: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share that was measured on `n` images, within [0, 1].

    It covers only the sampling of the images, not the seed of the training or the choice of the best of many trials.
    """
    if not 0 <= fraction <= 1:
        raise UsageError(f"fraction (={fraction}) must be from 0 to 1")
    if n < 1:
        raise UsageError(f"n (={n}) must be at least 1")
    spread = _Z * _Z / n
    center = (fraction + spread / 2) / (1 + spread)
    half = _Z * sqrt(fraction * (1 - fraction) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, center - half), min(1.0, center + half)
