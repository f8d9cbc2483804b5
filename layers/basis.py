"""Sampled cosine and Chebyshev bases.

Costain & Prisacariu, "Approximating Continuous Convolutions for Deep Network Compression", eqs. 3 and 4: a filter is
a series in phi_i(x), i = 0..n-1, with phi_i = cos(i t) (CosConv) or phi_i = T_i(x) (ChebConv), known only at its
taps.

Our deviations: the paper leaves the sample points open. Cosines are sampled at half-sample points, which makes the
truncated series a truncated DCT-II, the least-squares answer; Chebyshev polynomials at the Chebyshev-Gauss-Lobatto
points that the paper names. Each sampled function is scaled to unit length, which spans the same filters: gradient
descent on the coefficients then moves a filter about as far as gradient descent on its taps would, so that one learning
rate suits all layers. A tap axis of one sample has the constant as its only harmonic.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from layers.errors import UsageError

__all__ = ["FAMILIES", "Family", "basis_matrix"]

Family = Literal["cosine", "chebyshev"]
FAMILIES: tuple[Family, ...] = get_args(Family)


def basis_matrix(family: Family, taps: int, harmonics: int) -> Tensor:
    """The first `harmonics` basis functions at `taps` sample points: float64 (taps, harmonics), unit columns.

    A 2-D filter is `Phi_y A Phi_x^T`. Raises `UsageError` unless 1 <= harmonics <= taps.
    """
    if family not in FAMILIES:
        raise UsageError(f"basis (={family!r}) must be one of {', '.join(FAMILIES)}.")
    if not 1 <= harmonics <= taps:
        raise UsageError(f"harmonics (={harmonics}) must be between 1 and the filter's {taps} taps.")
    order = torch.arange(harmonics, dtype=torch.float64)
    samples = torch.cos(_angles(family, taps)[:, None] * order)
    return samples / samples.norm(dim=0)


def _angles(family: Family, taps: int) -> Tensor:
    """Sample points as angles in [0, pi]; T_i(cos t) = cos(i t), so that both families are cosines of an angle."""
    k = torch.arange(taps, dtype=torch.float64)
    if family == "cosine":
        return (k + 0.5) * (math.pi / taps)
    return k * (math.pi / max(taps - 1, 1))
