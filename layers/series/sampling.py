"""Sampled cosine and Chebyshev bases.

Costain & Prisacariu, "Approximating Continuous Convolutions for Deep Network Compression", eqs. 3 and 4: a filter is
a series in phi_i(x), i = 0..n-1, with phi_i = cos(i pi u) (CosConv) or T_i(1 - 2 u) (ChebConv), known only at its
taps, whose positions u lie in [0, 1].

Our deviations: the paper leaves the positions open; here they are part of a basis' name. `cosine` is sampled at
half-sample points, (k + 1/2) / K, which makes the truncated series a truncated DCT-II, the least-squares answer;
`chebyshev` at the Chebyshev-Gauss-Lobatto points that the paper names, (1 - cos(pi k / (K - 1))) / 2. `FAMILY@POINTS`
selects others: `chebyshev@endpoint`, for one, is polynomials at the equispaced positions k / (K - 1). Since
T_i(cos t) = cos(i t), `cosine@endpoint` and `chebyshev` are the same basis. Each sampled function is scaled to unit
length, which spans the same filters: gradient descent on the coefficients then moves a filter about as far as gradient
descent on its taps would, so that one learning rate suits all layers. On an axis of one tap the constant is the only
harmonic.
"""

from __future__ import annotations

import math
from functools import cache, partial

import torch
from torch import Tensor

from layers.errors import UsageError
from layers.series.basis import BASES, Basis, basis_parts

__all__ = ["basis_matrix", "first_equal_basis"]


def basis_matrix(basis: Basis, taps: int, harmonics: int) -> Tensor:
    """Sample the first `harmonics` basis functions at `taps` points: (taps, harmonics) float64, unit columns.

    A 2-D filter is `Phi_y A Phi_x^T`. Raises `UsageError` unless 1 <= harmonics <= taps.
    """
    family, points = basis_parts(basis)
    if type(harmonics) is not int or not 1 <= harmonics <= taps:
        raise UsageError(f"harmonics (={harmonics!r}) must be a whole number from 1 to the filter's {taps} taps")
    positions = _positions(points, taps)
    angles = math.pi * positions if family == "cosine" else torch.acos(1 - 2 * positions)
    samples = torch.cos(angles[:, None] * torch.arange(harmonics, dtype=torch.float64))
    return samples / samples.norm(dim=0)


@cache
def first_equal_basis(basis: Basis, kernel: tuple[int, int], harmonics: tuple[int, int]) -> Basis:
    """Return the first basis that is equal for these taps: all are for one harmonic, or for two on three taps."""

    def sampled(name: Basis) -> list[Tensor]:
        return [basis_matrix(name, k, n) for k, n in zip(kernel, harmonics, strict=True)]

    def same(name: Basis) -> bool:
        return all(map(partial(torch.allclose, atol=1e-12), sampled(name), sampled(basis)))

    return next(filter(same, BASES))


def _positions(points: str, taps: int) -> Tensor:
    """Return the positions of the taps in [0, 1], float64."""
    k = torch.arange(taps, dtype=torch.float64)
    if points == "half_sample":
        return (k + 0.5) / taps
    even = k / max(taps - 1, 1)
    return even if points == "endpoint" else (1 - torch.cos(math.pi * even)) / 2
