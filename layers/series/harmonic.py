"""Series convolutions: filters W = Phi_y A Phi_x^T with (n_y, n_x) harmonics.

Costain & Prisacariu, eqs. 3-5. Our deviations: harmonics may differ in y and x, which the paper leaves open, and eq. 5
is solved in closed form, A = pinv(Phi_y) W pinv(Phi_x)^T; `descend_coefficients` is the paper's gradient descent to it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.errors import OvertoneError

__all__ = [
    "basis_responses",
    "descend_coefficients",
    "factored_conv2d",
    "least_squares_coefficients",
    "padded",
    "series_taps",
]


def series_taps(coefficients: Tensor, phi_y: Tensor, phi_x: Tensor) -> Tensor:
    """Build filters (..., C, K_y, K_x) of coefficients (..., C, n_y, n_x) in the bases (K_y, n_y) and (K_x, n_x).

    One product from the left with both bases' product, for all channels of a filter at once, which leaves them last in
    memory.
    """
    both = (phi_y[:, None, :, None] * phi_x[:, None, :]).flatten(2).flatten(0, 1)
    taps = (both @ coefficients.flatten(-2).mT).mT
    return taps.unflatten(-1, (len(phi_y), len(phi_x)))


def least_squares_coefficients(taps: Tensor, phi_y: Tensor, phi_x: Tensor) -> Tensor:
    """Return the coefficients (..., n_y, n_x) whose series is nearest to `taps` (..., K_y, K_x) in the L2 norm.

    Solved in float64, returned in the dtype of `taps`; exact to rounding if n = K on both axes.
    """
    left = torch.linalg.pinv(phi_y.double())
    right = torch.linalg.pinv(phi_x.double())
    return (left @ taps.double() @ right.mT).to(taps.dtype)


def descend_coefficients(
    taps: Tensor,
    phi_y: Tensor,
    phi_x: Tensor,
    *,
    constant: bool,
    generator: torch.Generator,
    tolerance: float = 1e-9,
    limit: int = 100_000,
) -> Tensor:
    """Find the same coefficients as the paper does: by gradient descent on the squared error (eq. 5), in float64.

    Filters (N, C, K_y, K_x) start with their mean as the constant term and nothing else (`constant`, the paper's start
    of ChebConv), or with normal draws of variance 1 / (C K_y K_x) (its start of CosConv). The step is the inverse of
    the largest eigenvalue; steps end when the gradient is `tolerance` of the filters' norm. Raises `OvertoneError` if
    `limit` steps are not enough.
    """
    target, left, right = taps.double(), phi_y.double(), phi_x.double()
    coefficients = _first_coefficients(target, left, right, constant=constant, generator=generator)
    step = 1 / float(torch.linalg.matrix_norm(left, 2) * torch.linalg.matrix_norm(right, 2)) ** 2
    for _ in range(limit):
        gradient = left.mT @ (series_taps(coefficients, left, right) - target) @ right
        if gradient.norm() <= tolerance * target.norm():
            return coefficients.to(taps.dtype)
        coefficients = coefficients - step * gradient
    raise OvertoneError(f"gradient descent does not reach the series' coefficients within {limit} steps")


def _first_coefficients(
    target: Tensor, phi_y: Tensor, phi_x: Tensor, *, constant: bool, generator: torch.Generator
) -> Tensor:
    shape = (*target.shape[:2], phi_y.shape[1], phi_x.shape[1])
    if not constant:
        draws = torch.randn(shape, generator=generator, dtype=torch.float64)
        return draws.to(target.device) / target[0].numel() ** 0.5
    coefficients = target.new_zeros(shape)
    coefficients[..., 0, 0] = target.mean((-2, -1)) / (phi_y[0, 0] * phi_x[0, 0])
    return coefficients


def factored_conv2d(
    x: Tensor,
    coefficients: Tensor,
    phi_y: Tensor,
    phi_x: Tensor,
    *,
    stride: tuple[int, int],
    margins: tuple[int, int, int, int],
    padding_mode: str = "zeros",
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """Convolve without building filters: with basis functions along y, then x, then by a pointwise mix.

    Inputs (B, C, H, W), coefficients (N, C / groups, n_y, n_x), margins (left, right, top, bottom), outputs (B, N,
    H_out, W_out). Multiply-accumulates: H_out W C n_y K_y + H_out W_out C n_y n_x K_x + H_out W_out (C / groups) n_y
    n_x N.
    """
    x = basis_responses(x, phi_y, phi_x, stride=stride, margins=margins, padding_mode=padding_mode, dilation=dilation)
    return F.conv2d(x, coefficients.flatten(1)[:, :, None, None], groups=groups)


def basis_responses(
    x: Tensor,
    phi_y: Tensor,
    phi_x: Tensor,
    *,
    stride: tuple[int, int],
    margins: tuple[int, int, int, int],
    padding_mode: str = "zeros",
    dilation: tuple[int, int],
) -> Tensor:
    """Convolve each channel with each product of basis functions: (B, C, H, W) to (B, C n_y n_x, H_out, W_out).

    Columns are padded only after the convolution along y, which then does not compute the padding.
    """
    channels, n_y, n_x = x.shape[1], phi_y.shape[1], phi_x.shape[1]
    left, right, top, bottom = margins
    x, above = padded(x, (0, 0, top, bottom), padding_mode)
    rows = phi_y.mT.reshape(n_y, 1, -1, 1).repeat(channels, 1, 1, 1)
    x = F.conv2d(x, rows, stride=(stride[0], 1), padding=above, dilation=(dilation[0], 1), groups=channels)
    x, beside = padded(x, (left, right, 0, 0), padding_mode)
    columns = phi_x.mT.reshape(n_x, 1, 1, -1).repeat(channels * n_y, 1, 1, 1)
    return F.conv2d(x, columns, stride=(1, stride[1]), padding=beside, dilation=(1, dilation[1]), groups=channels * n_y)


def padded(x: Tensor, margins: tuple[int, int, int, int], mode: str) -> tuple[Tensor, tuple[int, int]]:
    """Return the padded input and (0, 0), or the input as it is and the padding (y, x) for the convolution to add."""
    left, right, top, bottom = margins
    if mode == "zeros" and left == right and top == bottom:
        return x, (top, left)
    return F.pad(x, margins, mode="constant" if mode == "zeros" else mode), (0, 0)
