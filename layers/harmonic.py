"""Series convolutions: filters W = Phi_y A Phi_x^T with (n_y, n_x) harmonics.

Costain & Prisacariu, eqs. 3-5. Our deviations: harmonics may differ in y and x, which the paper leaves open, and the
start is the closed-form least-squares optimum of eq. 5, A = pinv(Phi_y) W pinv(Phi_x)^T, where the paper descends to
it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["factored_conv2d", "least_squares_coefficients", "series_taps"]


def series_taps(coefficients: Tensor, phi_y: Tensor, phi_x: Tensor) -> Tensor:
    """Filters (..., K_y, K_x) of the coefficients (..., n_y, n_x) in the bases (K_y, n_y) and (K_x, n_x)."""
    return phi_y @ coefficients @ phi_x.mT


def least_squares_coefficients(taps: Tensor, phi_y: Tensor, phi_x: Tensor) -> Tensor:
    """Coefficients (..., n_y, n_x) whose series is nearest to `taps` (..., K_y, K_x) in the L2 norm.

    Solved in float64, returned in the dtype of `taps`; exact to rounding where n = K on both axes.
    """
    left = torch.linalg.pinv(phi_y.double())
    right = torch.linalg.pinv(phi_x.double())
    return (left @ taps.double() @ right.mT).to(taps.dtype)


def factored_conv2d(
    x: Tensor,
    coefficients: Tensor,
    phi_y: Tensor,
    phi_x: Tensor,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """The same convolution without building filters: basis functions along y, then x, then a pointwise mix.

    Input (B, C, H, W), coefficients (N, C / groups, n_y, n_x), output (B, N, H_out, W_out). Multiply-accumulates:
    H_out W C n_y K_y + H_out W_out C n_y n_x K_x + H_out W_out (C / groups) n_y n_x N.
    """
    channels, (n_y, n_x) = x.shape[1], coefficients.shape[-2:]
    rows = phi_y.mT.reshape(n_y, 1, -1, 1).repeat(channels, 1, 1, 1)
    x = F.conv2d(x, rows, stride=(stride[0], 1), padding=(padding[0], 0), dilation=(dilation[0], 1), groups=channels)
    columns = phi_x.mT.reshape(n_x, 1, 1, -1).repeat(channels * n_y, 1, 1, 1)
    x = F.conv2d(
        x, columns, stride=(1, stride[1]), padding=(0, padding[1]), dilation=(1, dilation[1]), groups=channels * n_y
    )
    return F.conv2d(x, coefficients.flatten(1)[:, :, None, None], groups=groups)
