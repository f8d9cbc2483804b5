"""Names of bases: a family of functions, and where on an axis the taps of a filter are (`layers.series.sampling`)."""

from __future__ import annotations

from typing import Literal, get_args

from layers.errors import UsageError

__all__ = ["BASES", "FAMILIES", "Basis", "Family", "basis_name", "basis_parts"]

Family = Literal["cosine", "chebyshev"]
Points = Literal["half_sample", "endpoint", "gauss_lobatto"]
Basis = Literal[
    "cosine", "chebyshev", "cosine@endpoint", "cosine@gauss_lobatto", "chebyshev@half_sample", "chebyshev@endpoint"
]
"""A family and the positions of its taps; the family alone stands for its own points. If several names mean the same
basis, the first is its canonical name."""

FAMILIES: tuple[Family, ...] = get_args(Family)
BASES: tuple[Basis, ...] = get_args(Basis)
_POINTS: tuple[Points, ...] = get_args(Points)
_OWN_POINTS: dict[str, Points] = {"cosine": "half_sample", "chebyshev": "gauss_lobatto"}


def basis_name(basis: object) -> Basis:
    """Return the canonical name of a basis, which may be given as `chebyshev` or as `chebyshev@gauss_lobatto`."""
    for name in BASES:
        family, _, points = name.partition("@")
        if basis in (name, f"{family}@{points or _OWN_POINTS[family]}"):
            return name
    points = ", ".join(_POINTS)
    raise UsageError(f"basis (={basis!r}) must be {' or '.join(FAMILIES)}, or FAMILY@POINTS with points {points}")


def basis_parts(basis: object) -> tuple[str, str]:
    """Return the family of a basis and the points at which it is sampled."""
    family, _, points = basis_name(basis).partition("@")
    return family, points or _OWN_POINTS[family]
