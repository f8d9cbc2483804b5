import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from layers import OvertoneError
from layers.series import harmonic
from layers.series.basis import FAMILIES
from layers.series.harmonic import (
    basis_responses,
    descend_coefficients,
    factored_conv2d,
    least_squares_coefficients,
    series_taps,
)
from layers.series.sampling import basis_matrix


@pytest.fixture
def bases(rng):
    def draw(kernel: tuple[int, int]) -> tuple[Tensor, Tensor]:
        family = rng.choice(FAMILIES)
        phi_y, phi_x = (basis_matrix(family, k, rng.randint(1, k)) for k in kernel)
        return phi_y, phi_x

    return draw


@pytest.fixture
def kernel(rng):
    return rng.randint(1, 7), rng.randint(1, 7)


def test_taps_are_the_double_sum_of_the_series(bases, kernel, normal):
    phi_y, phi_x = bases(kernel)
    coefficients = normal(2, 3, phi_y.shape[1], phi_x.shape[1])
    expected = torch.zeros(2, 3, *kernel, dtype=torch.float64)
    for i in range(phi_y.shape[1]):
        for j in range(phi_x.shape[1]):
            expected += coefficients[..., i, j, None, None] * phi_y[:, i, None] * phi_x[:, j]
    assert torch.allclose(series_taps(coefficients, phi_y, phi_x), expected, atol=1e-12)


@pytest.mark.parametrize("_", range(5))
def test_least_squares_equals_numpy_on_the_kronecker_basis(_, bases, kernel, normal):
    phi_y, phi_x = bases(kernel)
    taps = normal(3, 2, *kernel)
    found = least_squares_coefficients(taps, phi_y, phi_x)
    system = np.kron(phi_y.numpy(), phi_x.numpy())
    expected, *_rest = np.linalg.lstsq(system, taps.reshape(6, -1).T.numpy(), rcond=None)
    assert np.allclose(found.reshape(6, -1).numpy(), expected.T, atol=1e-9)


def test_no_perturbation_of_the_coefficients_is_nearer(bases, normal):
    phi_y, phi_x = bases((5, 4))
    taps = normal(8, 5, 4)
    found = least_squares_coefficients(taps, phi_y, phi_x)

    def error(coefficients: Tensor) -> Tensor:
        return (series_taps(coefficients, phi_y, phi_x) - taps).square().sum((1, 2))

    best = error(found)
    for scale in (1e-3, 1e-1, 1.0):
        for _ in range(20):
            assert (error(found + scale * normal(*found.shape)) > best).all()


def test_least_squares_is_exact_with_all_harmonics_and_keeps_the_dtype(normal):
    for family in FAMILIES:
        taps = normal(4, 3, 7, 5, dtype=torch.float32)
        phi_y, phi_x = (basis_matrix(family, k, k).float() for k in (7, 5))
        coefficients = least_squares_coefficients(taps, phi_y, phi_x)
        assert coefficients.dtype == torch.float32
        assert torch.allclose(series_taps(coefficients, phi_y, phi_x), taps, atol=1e-5)


@pytest.mark.parametrize("_", range(30))
def test_factored_convolution_equals_the_dense_one(_, random_conv, images, bases, normal):
    conv = random_conv(bias=False)
    phi_y, phi_x = bases(conv.kernel_size)
    mix = normal(conv.out_channels, conv.in_channels // conv.groups, phi_y.shape[1], phi_x.shape[1])
    x = images(conv)
    where = {"stride": conv.stride, "dilation": conv.dilation, "groups": conv.groups}
    expected = F.conv2d(x, series_taps(mix, phi_y, phi_x), padding=conv.padding, **where)
    margins = (conv.padding[1], conv.padding[1], conv.padding[0], conv.padding[0])
    found = factored_conv2d(x, mix, phi_y, phi_x, margins=margins, **where)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (6, 1)])
def test_factored_convolution_of_inputs_of_one_pixel(size, bases, normal):
    phi_y, phi_x = bases((3, 3))
    mix, x = normal(4, 2, phi_y.shape[1], phi_x.shape[1]), normal(1, 2, *size)
    where = {"stride": (1, 1), "margins": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}
    expected = F.conv2d(x, series_taps(mix, phi_y, phi_x), padding=1)
    assert torch.allclose(factored_conv2d(x, mix, phi_y, phi_x, **where), expected, atol=1e-12)


def test_gradients_of_the_factored_convolution(bases, normal):
    phi_y, phi_x = bases((3, 4))
    mix = normal(4, 2, phi_y.shape[1], phi_x.shape[1]).requires_grad_()
    x = normal(1, 4, 5, 6).requires_grad_()

    def call(x: Tensor, mix: Tensor) -> Tensor:
        return factored_conv2d(x, mix, phi_y, phi_x, stride=(2, 1), margins=(2, 2, 1, 1), dilation=(1, 1), groups=2)

    assert torch.autograd.gradcheck(call, (x, mix))


@pytest.mark.parametrize("_", range(10))
def test_macs_are_those_of_the_docstring(_, random_conv, images, bases, normal, count_macs):
    conv = random_conv(bias=False)
    phi_y, phi_x = bases(conv.kernel_size)
    (k_y, n_y), (k_x, n_x) = phi_y.shape, phi_x.shape
    per_group = conv.in_channels // conv.groups
    mix, x = normal(conv.out_channels, per_group, n_y, n_x), images(conv, 3)
    out_y, out_x = conv(x).shape[2:]
    expected = out_y * x.shape[3] * conv.in_channels * n_y * k_y
    expected += out_y * out_x * conv.in_channels * n_y * n_x * k_x
    expected += out_y * out_x * per_group * n_y * n_x * conv.out_channels

    def call() -> Tensor:
        (top, left), where = conv.padding, {"stride": conv.stride, "dilation": conv.dilation, "groups": conv.groups}
        return factored_conv2d(x, mix, phi_y, phi_x, margins=(left, left, top, top), **where)

    assert count_macs(call, images=3) == expected


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("_", range(5))
def test_gradient_descent_converges_to_least_squares(_, constant, bases, kernel, normal, generator):
    phi_y, phi_x = bases(kernel)
    taps = normal(3, 2, *kernel)
    found = descend_coefficients(taps, phi_y, phi_x, constant=constant, generator=generator)
    assert torch.allclose(found, least_squares_coefficients(taps, phi_y, phi_x), atol=1e-5)


def test_gradient_descent_begins_as_the_paper_says(normal, generator):
    phi_y, phi_x = (basis_matrix("chebyshev", k, n) for k, n in ((5, 4), (4, 4)))
    taps = 3 + normal(2000, 3, 5, 4)
    constant = harmonic._first_coefficients(taps, phi_y, phi_x, constant=True, generator=generator)
    assert torch.allclose(series_taps(constant, phi_y, phi_x), taps.mean((2, 3), keepdim=True).expand_as(taps))
    drawn = harmonic._first_coefficients(taps, phi_y, phi_x, constant=False, generator=generator)
    assert drawn.shape == (2000, 3, 4, 4)
    assert float(drawn.var()) == pytest.approx(1 / (3 * 5 * 4), rel=0.05)


def test_gradient_descent_that_does_not_arrive_says_so(normal, generator):
    phi_y, phi_x = (basis_matrix("chebyshev", 7, 6) for _ in range(2))
    with pytest.raises(
        OvertoneError, match=r"^gradient descent does not reach the series' coefficients within 3 steps$"
    ):
        descend_coefficients(normal(2, 2, 7, 7), phi_y, phi_x, constant=True, generator=generator, limit=3)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("_", range(5))
def test_responses_are_convolutions_with_products_of_basis_functions(_, mode, bases, normal, rng):
    phi_y, phi_x = bases((rng.randint(1, 4), rng.randint(1, 4)))
    margins, x = tuple(rng.randint(0, 2) for _ in range(4)), normal(2, 3, 9, 8)
    stride, dilation = (rng.randint(1, 2), rng.randint(1, 2)), (rng.randint(1, 2), rng.randint(1, 2))
    found = basis_responses(
        x, phi_y, phi_x, stride=stride, margins=margins, padding_mode=mode, dilation=dilation
    ).unflatten(1, (3, phi_y.shape[1], phi_x.shape[1]))
    padded_x = F.pad(x, margins, mode="constant" if mode == "zeros" else mode)
    for c in range(3):
        for i in range(phi_y.shape[1]):
            for j in range(phi_x.shape[1]):
                product = torch.outer(phi_y[:, i], phi_x[:, j])[None, None]
                expected = F.conv2d(padded_x[:, c : c + 1], product, stride=stride, dilation=dilation)
                assert torch.allclose(found[:, c, i, j], expected[:, 0], atol=1e-10)
