"""Templates and their gains by least squares in the space of a layer's outputs; ours, for Miles & Mikolajczyk's layers.

For templates what `layers.calibration.series` is for series. On the inputs that the layer really gets, first the
templates are fitted to their target outputs (in their basis, if they are series), and then the gains of the filters
that are rebuilt from them, each from its best template (or the r-th from template r mod M). The output of a rebuilt
filter is linear in its gains, with one response a tap and group: the template's tap on the inputs. The moments of all
responses follow from those of the inputs,

    G = sum x x^T,  T = sum y x^T,   x the C K_y K_x values under the filter,

so one pass is enough. Angles and matrices are not linear: they stay nearest to the filters (`layers.templates.fit`). A
ridge, a share of the mean energy, draws each fit to where it started.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from layers.blockfloat.format import BlockFormat
from layers.calibration.inputs import chunks, seen_by_filters
from layers.calibration.rounding import block_steps, round_in_turn
from layers.conv import CompressedConv2d
from layers.errors import OvertoneError, UsageError
from layers.templates.fit import least_squares_gains

__all__ = ["TemplateRegression"]


class TemplateRegression:
    """Streamed least squares of one layer with templates: `add` batches, then `apply`.

    Each convolution group, called part here, has moments of its own: (C / P K_y K_x)^2 float64 values.
    """

    def __init__(self, layer: CompressedConv2d, *, ridge: float = 1e-3) -> None:
        if layer.template_mask is None:
            raise UsageError(f"form (={layer.form}) must have templates for this calibration")
        self.layer = layer
        self.ridge = ridge
        self.template_mask = layer.template_mask
        size = layer.shape.filter_channels * layer.shape.kernel[0] * layer.shape.kernel[1]
        self._gram = layer.coefficients.new_zeros(layer.shape.groups, size, size, dtype=torch.float64)
        self._cross = layer.coefficients.new_zeros(layer.shape.out_channels, size, dtype=torch.float64)

    def add(self, x: Tensor, outputs: Tensor) -> None:
        """Add inputs (B, C, H, W) as the layer gets them, and target outputs (B, N, H_out, W_out)."""
        layer = self.layer
        parts = len(self._gram)
        bias = layer.rounded_bias()
        if bias is not None:
            outputs = outputs - bias[:, None, None]
        values = parts * self._gram.shape[1] * outputs.shape[2] * outputs.shape[3]
        for inputs, targets in chunks(x, outputs, values):
            for pair in seen_by_filters(layer, inputs, targets):
                patches, by_part = (columns.unflatten(0, (parts, -1)) for columns in pair)
                self._gram += (patches @ patches.mT).double()
                self._cross += (by_part @ patches.mT).double().flatten(0, 1)

    @torch.no_grad()
    def apply(self, weight: Tensor) -> None:
        """Set the layer's templates as fitted, and transforms that rebuild the filters `weight` (N, C / P, ...)."""
        if not (self._gram.isfinite().all() and self._cross.isfinite().all()):
            raise OvertoneError("cannot calibrate the layer: its inputs or outputs are not finite")
        coefficients = self._fit_templates()
        parameters = self.layer.transforms()
        self.layer.set_coefficients(coefficients, weight)
        if self.layer.form.transform == "scalar" and parameters is not None:
            template_index, gains = self._fit_gains(weight)
            self.layer.set_coefficients(coefficients, weight, template_index)
            parameters.copy_(gains)

    def _by_part(self, rows: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Return the rows (N, ...) of the outputs that the mask (N,) selects, part by part."""
        return rows[mask].split(mask.view(len(self._gram), -1).sum(1).tolist())

    def _fit_templates(self) -> Tensor:
        """Return the coefficients (M, C / P, n_y, n_x) of the templates."""
        start = self.layer.get_coefficients()
        cross_by_part = self._by_part(self._cross, self.template_mask)
        start_by_part = start.double().flatten(1).split([len(part) for part in cross_by_part])
        fitted, moments = [], []
        for gram, cross, part in zip(self._gram, cross_by_part, start_by_part, strict=True):
            gram, cross = _by_tap(gram, self.layer), cross.unflatten(1, (self.layer.shape.filter_channels, -1))
            if self.layer.form.basis is not None:
                phi = torch.kron(*(phi.double() for phi in self.layer.bases()))
                gram, cross = torch.einsum("ctdu,ta,ub->cadb", gram, phi, phi), cross @ phi
            moments.append(gram.flatten(2).flatten(0, 1))
            fitted.append(self._fit(moments[-1][None], cross.flatten(1)[None], part[None])[0])
        return self._rounded_templates(fitted, moments).view(start.shape).to(start.dtype)

    def _rounded_templates(self, fitted: Sequence[Tensor], moments: Sequence[Tensor]) -> Tensor:
        """Round fitted templates (rows, d) of each part so that their own outputs change least."""
        form, values = self.layer.form.weight_format, torch.cat(list(fitted))
        if not isinstance(form, BlockFormat):
            return values
        like = self.layer.get_coefficients().shape
        energy = torch.cat([gram.diagonal().expand_as(rows) for rows, gram in zip(fitted, moments, strict=True)])
        steps = block_steps(self.layer.stored(values.view(like)), self.layer.stored(energy.view(like)), form)
        by_part = self.layer.rearranged(steps).flatten(1).split([len(rows) for rows in fitted])
        parts = zip(fitted, moments, by_part, strict=True)
        return torch.cat([round_in_turn(rows[None], m[None], s[None], form.bits)[0] for rows, m, s in parts])

    def _fit_gains(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the templates (N - M,) of pruned filters, and their gains (N - M, G, K_y, K_x)."""
        templates = self.layer.templates()
        filters = self._by_part(weight, ~self.template_mask)
        cross = self._by_part(self._cross, ~self.template_mask)
        template_index = self.layer.assignment().split([len(part) for part in filters])
        parts = zip(self._gram, filters, cross, template_index, strict=True)
        indices, gains, moments = zip(*(self._fit_gains_of_part(templates, *part) for part in parts), strict=True)
        return torch.cat(indices), self._rounded_gains(torch.cat(gains), torch.cat(moments))

    def _rounded_gains(self, gains: Tensor, moments: Tensor) -> Tensor:
        """Round gains (N - M, G, K_y, K_x), with the moments (N - M, n, n) of what each multiplies."""
        form = self.layer.form.weight_format
        if not isinstance(form, BlockFormat) or not len(gains):
            return gains
        steps = block_steps(gains, moments.diagonal(dim1=1, dim2=2).reshape(gains.shape), form)
        rows, steps = gains.flatten(1)[:, None], steps.flatten(1)[:, None]
        return round_in_turn(rows, moments, steps, form.bits).view_as(gains)

    def _fit_gains_of_part(
        self, templates: Tensor, gram: Tensor, filters: Tensor, cross: Tensor, template_index: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same for a part's filters (R, C / P, K_y, K_x), which have the templates `template_index` (R,).

        And the moments (R, n, n) of what gains multiply.

        If the form assigns templates, each filter gets the one whose gains leave its outputs the least squared error.
        """
        groups, _, channels, *kernel = templates.shape
        moments = self._moments(gram, templates)
        cross = cross.view(len(filters), groups, channels, prod(kernel))
        products = torch.einsum("rgck,gmck->mrgk", cross, templates.double().flatten(3)).flatten(2)
        if self.layer.template_index is not None:
            gains = self._fit(moments, products, torch.zeros_like(products))
            template_index = (gains * (2 * products - gains @ moments)).sum(2).argmax(0)
        filters = filters.to(templates).unflatten(1, (groups, channels))
        start = least_squares_gains(templates.transpose(0, 1)[template_index], filters).double().flatten(1)
        products = products[template_index, torch.arange(len(template_index), device=template_index.device)]
        gains = self._fit(moments[template_index], products[:, None], start[:, None])
        return template_index, gains.view(-1, groups, *kernel), moments[template_index]

    def _moments(self, gram: Tensor, templates: Tensor) -> Tensor:
        """Return the moments of the responses to each template in a part, (M, n, n), n = G K_y K_x."""
        groups, _, channels, *kernel = templates.shape
        templates, taps = templates.double().flatten(3), prod(kernel)
        gram = _by_tap(gram, self.layer).view(groups, channels, taps, groups, channels, taps)
        half = torch.einsum("gmck,gckhdl->mgkhdl", templates, gram)
        return torch.einsum("mgkhdl,hmdl->mgkhl", half, templates).flatten(3).flatten(1, 2)

    def _fit(self, gram: Tensor, cross: Tensor, start: Tensor) -> Tensor:
        """Fit rows (..., R, n) by least squares with moments (..., n, n) and (..., R, n), drawn to the start."""
        energy = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
        damping = torch.where(energy > 0, self.ridge * energy, 1.0)
        system = gram + torch.diag_embed(damping[..., None].expand(gram.shape[:-1]))
        return start + torch.linalg.solve(system, (cross - start @ gram).mT).mT


def _by_tap(gram: Tensor, layer: CompressedConv2d) -> Tensor:
    """Reshape the moments of a part's inputs to (C / P, T, C / P, T)."""
    shape = (layer.shape.filter_channels, -1)
    return gram.unflatten(1, shape).unflatten(0, shape)
