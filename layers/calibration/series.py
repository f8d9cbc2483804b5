"""Series coefficients by least squares in the space of a layer's outputs.

Costain & Prisacariu fit the filters' taps (eq. 5). Ours fits what the layer computes. With basis responses v (C n_y n_x
values a pixel) to the inputs that it really gets, and target outputs y,

    minimize  sum |y - A v|^2 + ridge |A - A_0|^2    over A,

with the present coefficients A_0 and a ridge that is a share of the responses' mean energy. The solution,
A = A_0 + (T - A_0 G) (G + ridge I)^-1 with the second moments G = sum v v^T and T = sum y v^T, is never worse than A_0
on the data it is fitted to. Only the moments are kept, whatever the number of images.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from layers.conv import CompressedConv2d
from layers.errors import OvertoneError, UsageError
from layers.series.allocation import supports

__all__ = ["OutputRegression"]

_CHUNK_VALUES = 1 << 24
"""Basis responses held at a time: 64 MiB of float32."""


class OutputRegression:
    """Streamed least squares of one series layer: `add` batches, then `solve`.

    Each convolution group is a regression of its own. Coefficients that are allocated to filters are fitted for every
    support, and the supports are chosen anew. Memory: (C / groups n_y n_x)^2 float64 values a group. For layers with
    templates there is `layers.calibration.templates`.
    """

    def __init__(self, layer: CompressedConv2d, *, ridge: float = 1e-3) -> None:
        if layer.form.basis is None or layer.template_mask is not None:
            raise UsageError(f"form (={layer.form}) must have a series and no templates for this calibration")
        self.layer = layer
        self.ridge = ridge
        groups = layer.shape.groups
        self._start = layer.get_coefficients().detach().double().flatten(1).unflatten(0, (groups, -1))
        size = self._start.shape[2]
        self._gram = self._start.new_zeros(groups, size, size)
        self._cross = torch.zeros_like(self._start)

    def add(self, x: Tensor, outputs: Tensor) -> None:
        """Add inputs (B, C, H, W) as the layer gets them, and target outputs (B, N, H_out, W_out)."""
        bias = self.layer.rounded_bias()
        if bias is not None:
            outputs = outputs - bias[:, None, None]
        values = self._gram.shape[0] * self._gram.shape[1] * outputs.shape[2] * outputs.shape[3]
        step = max(1, _CHUNK_VALUES // max(values, 1))
        for inputs, targets in zip(x.split(step), outputs.split(step), strict=True):
            responses = self._by_group(self.layer.responses(inputs))
            self._gram += (responses @ responses.mT).double()
            self._cross += (self._by_group(targets) @ responses.mT).double()

    def solve(self, importance: Tensor | None = None) -> Tensor:
        """Return the fitted coefficients (N, C / groups, n_y, n_x), as `CompressedConv2d.set_coefficients` takes them.

        Coefficients that are allocated to filters go to the supports that leave the least squared output error, each
        filter's weighted by its `importance` (N,); the layer's supports are set.
        """
        if not (self._gram.isfinite().all() and self._cross.isfinite().all()):
            raise OvertoneError("cannot calibrate the layer: its inputs or outputs are not finite")
        if self.layer.form.allocation is not None:
            return self._solve_allocated(importance)
        return self._shaped(self._fit(slice(None)))

    def _fit(self, columns: Any) -> Tensor:
        """Fit coefficients (groups, filters, C / groups n_y n_x) that are zero outside these columns."""
        gram = self._gram[:, columns][:, :, columns]
        start = self._start[:, :, columns]
        energy = self._gram.diagonal(dim1=1, dim2=2).mean(1)
        damping = torch.where(energy > 0, self.ridge * energy, 1.0)
        system = gram + torch.diag_embed(damping[:, None].expand(gram.shape[:2]))
        residual = self._cross[:, :, columns] - start @ gram
        coefficients = torch.zeros_like(self._start)
        coefficients[:, :, columns] = start + torch.linalg.solve(system, residual.mT).mT
        return coefficients

    def _solve_allocated(self, importance: Tensor | None) -> Tensor:
        taps = self.layer.shape.kernel[0] * self.layer.shape.kernel[1]
        harmonic = torch.arange(self._gram.shape[1], device=self._gram.device) % taps
        y, x = harmonic // self.layer.shape.kernel[1], harmonic % self.layer.shape.kernel[1]
        fits = []
        for n_y, n_x in supports(self.layer.shape.kernel):
            fits.append(self._fit(((y < n_y) & (x < n_x)).nonzero().squeeze(1)))
        errors = torch.stack([self._error(coefficients).flatten() for coefficients in fits], 1)
        chosen = self.layer.choose_supports(errors if importance is None else errors * importance[:, None])
        fitted = torch.stack([coefficients.flatten(0, 1) for coefficients in fits])
        return self._shaped(fitted[chosen, torch.arange(len(chosen), device=chosen.device)])

    def _error(self, coefficients: Tensor) -> Tensor:
        """Return the squared output error (groups, filters), less a part that does not depend on the coefficients."""
        return ((coefficients @ self._gram - 2 * self._cross) * coefficients).sum(2)

    def _shaped(self, coefficients: Tensor) -> Tensor:
        return coefficients.reshape(self.layer.get_coefficients().shape).to(self.layer.coefficients.dtype)

    def _by_group(self, x: Tensor) -> Tensor:
        """Reshape (B, groups c, H, W) to (groups, c, B H W)."""
        groups = self._gram.shape[0]
        return x.flatten(2).transpose(0, 1).flatten(1).unflatten(0, (groups, -1))
