import math

import pytest
import torch
from torch import Tensor

from layers import UsageError
from layers.basis import FAMILIES, basis_matrix

SIZES = range(1, 12)


def projector(phi: Tensor) -> Tensor:
    """Orthogonal projector on the columns of phi."""
    q, _ = torch.linalg.qr(phi)
    return q @ q.mT


@pytest.mark.parametrize("taps", SIZES)
def test_cosine_basis_is_the_orthonormal_dct_ii(taps):
    phi = basis_matrix("cosine", taps, taps)
    expected = torch.tensor(
        [[math.cos(math.pi * i * (2 * k + 1) / (2 * taps)) for i in range(taps)] for k in range(taps)],
        dtype=torch.float64,
    )
    expected *= (2 / taps) ** 0.5
    expected[:, 0] = taps**-0.5
    assert torch.allclose(phi, expected, atol=1e-13)
    assert torch.allclose(phi.mT @ phi, torch.eye(taps, dtype=torch.float64), atol=1e-13)


@pytest.mark.parametrize("taps", SIZES)
def test_chebyshev_basis_follows_the_recurrence_at_gauss_lobatto_points_to_unit_length(taps):
    phi = basis_matrix("chebyshev", taps, taps)
    x = torch.tensor([math.cos(math.pi * k / max(taps - 1, 1)) for k in range(taps)], dtype=torch.float64)
    polynomials = [torch.ones_like(x), x]
    while len(polynomials) < taps:
        polynomials.append(2 * x * polynomials[-1] - polynomials[-2])
    expected = [polynomial / polynomial.square().sum().sqrt() for polynomial in polynomials[:taps]]
    assert torch.allclose(phi, torch.stack(expected, 1), atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("taps", SIZES)
def test_basis_has_full_rank_and_fewer_harmonics_are_its_first_columns(family, taps):
    full = basis_matrix(family, taps, taps)
    for harmonics in range(1, taps + 1):
        phi = basis_matrix(family, taps, harmonics)
        assert phi.shape == (taps, harmonics)
        assert phi.dtype == torch.float64
        assert torch.equal(phi, full[:, :harmonics])
        assert torch.linalg.matrix_rank(phi) == harmonics


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("taps", SIZES)
def test_as_many_harmonics_as_taps_are_exact(family, taps, normal):
    phi = basis_matrix(family, taps, taps)
    signal = normal(taps)
    assert torch.allclose(phi @ torch.linalg.solve(phi, signal), signal, atol=1e-10)


def test_families_span_the_same_filters_for_two_harmonics_of_three_taps():
    cosine, chebyshev = (projector(basis_matrix(family, 3, 2)) for family in FAMILIES)
    assert torch.allclose(cosine, chebyshev, atol=1e-14)


@pytest.mark.parametrize("harmonics", range(2, 7))
def test_families_differ_for_seven_taps(harmonics):
    cosine, chebyshev = (projector(basis_matrix(family, 7, harmonics)) for family in FAMILIES)
    assert (cosine - chebyshev).abs().max() > 0.01


def test_one_harmonic_is_the_constant_in_both_families():
    for family in FAMILIES:
        assert torch.allclose(basis_matrix(family, 7, 1), torch.full((7, 1), 7**-0.5, dtype=torch.float64), atol=1e-15)


@pytest.mark.parametrize(("taps", "harmonics"), [(3, 0), (3, 4), (1, 2), (5, -1), (5, 2.0), (5, True)])
def test_harmonics_beyond_the_taps_are_refused(taps, harmonics):
    message = rf"harmonics \(={harmonics}\) must be a whole number from 1 to the filter's {taps} taps\."
    with pytest.raises(UsageError, match=message):
        basis_matrix("cosine", taps, harmonics)


def test_unknown_family_is_refused():
    with pytest.raises(UsageError, match=r"basis \(='fourier'\) must be cosine or chebyshev, or FAMILY@POINTS"):
        basis_matrix("fourier", 3, 2)
