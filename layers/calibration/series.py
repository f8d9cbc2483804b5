"""Coefficients by least squares in the space of a layer's outputs, of series and of filters as they are.

Costain & Prisacariu fit the filters' taps (eq. 5). Ours fits what the layer computes. With basis responses v (C n_y n_x
values a pixel) to the inputs that it really gets, and target outputs y,

    minimize  sum |y - A v|^2 + ridge |A - A_0|^2    over A,

with the present coefficients A_0 and a ridge that is a share of the responses' mean energy. The solution,
A = A_0 + (T - A_0 G) (G + ridge I)^-1 with the second moments G = sum v v^T and T = sum y v^T, is never worse than A_0
on the data it is fitted to. Only the moments are kept, whatever the number of images. Without a series v are the values
under the filter themselves, and A_0 the filters: then the fit mends what layers before have changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from layers.blockfloat.format import BlockFormat
from layers.calibration.inputs import by_pixel, chunks, seen_by_filters, sparse_steps
from layers.calibration.rounding import block_steps, round_in_turn
from layers.conv import CompressedConv2d
from layers.errors import OvertoneError, UsageError
from layers.linear import CompressedLinear
from layers.series.allocation import supports

__all__ = ["OutputRegression"]

_ENOUGH = 32
"""Pixels for each value of a filter without a series, of which more are left out."""


class OutputRegression:
    """Streamed least squares of one layer without templates: `add` batches, then `solve`.

    Each convolution group is a regression of its own. Coefficients that are allocated to filters are fitted for every
    support, and the supports are chosen anew. Memory: (C / groups n_y n_x)^2 float64 values a group. For layers with
    templates there is `layers.calibration.templates`.
    """

    def __init__(
        self, layer: CompressedConv2d | CompressedLinear, *, ridge: float = 1e-3, images: int | None = None
    ) -> None:
        """Of so many `images` a layer without a series takes as many pixels as are enough, else all."""
        if layer.form.templates is not None:
            raise UsageError(f"form (={layer.form}) must have no templates for this calibration")
        self.layer = layer
        self.ridge = ridge
        self._images = images
        self._seen = 0
        groups = layer.shape.groups
        self._start = layer.get_coefficients().detach().double().flatten(1).unflatten(0, (groups, -1))
        size = self._start.shape[2]
        self._gram = self._start.new_zeros(groups, size, size)
        self._cross = torch.zeros_like(self._start)

    def add(self, x: Tensor, outputs: Tensor) -> None:
        """Add inputs (B, C, H, W) as the layer gets them, and target outputs (B, N, H_out, W_out)."""
        bias = self.layer.rounded_bias()
        if bias is not None:
            outputs = outputs - (bias if isinstance(self.layer, CompressedLinear) else bias[:, None, None])
        values = self._gram.shape[0] * self._gram.shape[1] * self._pixels(outputs)
        for inputs, targets in chunks(x, outputs, values):
            for pair in self._pairs(inputs, targets):
                seen, wanted = (columns.unflatten(0, (len(self._gram), -1)) for columns in pair)
                self._gram += (seen @ seen.mT).double()
                self._cross += (wanted @ seen.mT).double()
            self._seen += len(inputs)

    def _pixels(self, outputs: Tensor) -> int:
        return outputs[0].numel() // self.layer.shape.out_channels

    def _pairs(self, x: Tensor, outputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what coefficients multiply, and the outputs that are wanted there."""
        if self.layer.form.basis is not None:
            assert isinstance(self.layer, CompressedConv2d)
            yield by_pixel(self.layer.responses(x)), by_pixel(outputs)
            return
        steps = sparse_steps((self._images or 0) * self._pixels(outputs), _ENOUGH * self._gram.shape[1])
        yield from seen_by_filters(self.layer, x, outputs, steps, self._seen)

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

    def rounded(self, coefficients: Tensor) -> Tensor:
        """Return fitted coefficients in the layer's format, so rounded that outputs change least.

        Layers without block floating point keep theirs.
        """
        form = self.layer.form.weight_format
        if not isinstance(form, BlockFormat) or not self._gram.any():
            return coefficients
        energy = self._gram.diagonal(dim1=1, dim2=2)[:, None].expand_as(self._start).reshape(coefficients.shape)
        values = coefficients.double()
        steps = self.layer.rearranged(block_steps(self.layer.stored(values), self.layer.stored(energy), form))
        rows, steps = (t.flatten(1).unflatten(0, (len(self._gram), -1)) for t in (values, steps))
        if self.layer.form.allocation is None:
            rounded = round_in_turn(rows, self._gram, steps, form.bits)
        else:
            rounded = self._round_allocated(rows, steps, form.bits)
        return rounded.reshape(coefficients.shape).to(coefficients.dtype)

    def _round_allocated(self, rows: Tensor, steps: Tensor, bits: int) -> Tensor:
        """Round filters of each support together, for these have the same moments."""
        assert isinstance(self.layer, CompressedConv2d)
        rounded = torch.zeros_like(rows)
        taken = self.layer.frequency_support.view(len(rows), -1)
        for part, gram in enumerate(self._gram):
            for support in taken[part].unique():
                filters = (taken[part] == support).nonzero().squeeze(1)
                columns = (steps[part, filters] != 0).any(0).nonzero().squeeze(1)
                place = part, filters[:, None], columns
                found = round_in_turn(rows[place][None], gram[columns][:, columns][None], steps[place][None], bits)
                rounded[place] = found[0]
        return rounded

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
        assert isinstance(self.layer, CompressedConv2d)
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
