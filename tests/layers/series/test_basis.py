import math

import pytest
import torch
from torch import Tensor

from layers import UsageError
from layers.series.basis import BASES, FAMILIES, basis_name
from layers.series.sampling import basis_matrix

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
    message = rf"harmonics \(={harmonics}\) must be a whole number from 1 to the filter's {taps} taps"
    with pytest.raises(UsageError, match=message):
        basis_matrix("cosine", taps, harmonics)


def test_unknown_family_is_refused():
    with pytest.raises(UsageError, match=r"basis \(='fourier'\) must be cosine or chebyshev, or FAMILY@POINTS"):
        basis_matrix("fourier", 3, 2)


def positions(points: str, taps: int) -> list[float]:
    if points == "half_sample":
        return [(k + 0.5) / taps for k in range(taps)]
    if points == "endpoint":
        return [k / max(taps - 1, 1) for k in range(taps)]
    return [(1 - math.cos(math.pi * k / max(taps - 1, 1))) / 2 for k in range(taps)]


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("taps", SIZES)
def test_sampled_functions_are_those_of_the_name_at_unit_length(name, taps):
    family, _, points = name.partition("@")
    points = points or {"cosine": "half_sample", "chebyshev": "gauss_lobatto"}[family]

    def function(i: int, u: float) -> float:
        if family == "cosine":
            return math.cos(i * math.pi * u)
        x = 1 - 2 * u
        values = [1.0, x]
        while len(values) <= i:
            values.append(2 * x * values[-1] - values[-2])
        return values[i]

    samples = [[function(i, u) for i in range(taps)] for u in positions(points, taps)]
    expected = torch.tensor(samples, dtype=torch.float64)
    assert torch.allclose(basis_matrix(name, taps, taps), expected / expected.norm(dim=0), atol=1e-11)


@pytest.mark.parametrize("points", ["endpoint", "half_sample"])
def test_equispaced_chebyshev_filters_are_polynomials(points, rng):
    taps, harmonics = 7, rng.randint(1, 7)
    x = torch.tensor(positions(points, taps), dtype=torch.float64)
    polynomials = torch.stack([x**i for i in range(harmonics)], 1)
    assert torch.allclose(
        projector(basis_matrix(f"chebyshev@{points}", taps, harmonics)), projector(polynomials), atol=1e-9
    )


@pytest.mark.parametrize("taps", SIZES)
def test_cosines_at_end_points_are_chebyshev_at_gauss_lobatto_points(taps):
    ours, theirs = (basis_matrix(name, taps, taps) for name in ("cosine@endpoint", "chebyshev"))
    assert torch.allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("taps", [2, 3, 4, 7])
def test_all_harmonics_are_exact_at_any_points(name, taps, normal):
    phi, signal = basis_matrix(name, taps, taps), normal(taps)
    assert torch.allclose(phi @ torch.linalg.solve(phi, signal), signal, atol=1e-10)


def test_a_familys_own_points_are_left_out_of_its_name():
    assert basis_name("cosine@half_sample") == "cosine"
    assert basis_name("chebyshev@gauss_lobatto") == "chebyshev"
    assert [basis_name(name) for name in BASES] == list(BASES)
    assert basis_matrix("cosine@half_sample", 5, 3).equal(basis_matrix("cosine", 5, 3))


@pytest.mark.parametrize("name", ["cosine@", "cosine@middle", "@endpoint", "", None, 3, ["cosine"]])
def test_names_that_are_no_basis_are_refused(name):
    with pytest.raises(
        UsageError, match=r"basis \(=.*\) must be cosine or chebyshev, or FAMILY@POINTS with points half"
    ):
        basis_name(name)
