"""Templates and their gains by least squares in the space of a layer's outputs; ours, for Miles & Mikolajczyk's layers.

What `layers.calibration.series` does for series: from the inputs that the layer really sees, the kept filters are
fitted to the outputs that they should give (in their basis, where they are series), and then the gains of the filters
that are rebuilt from them, each from the template that serves it best (or the r-th from template r mod M). A rebuilt
filter's output is linear in its gains, with one response a tap and group: the template's tap on the inputs. The moments
of all responses follow from those of the inputs,

    G = sum x x^T,  T = sum y x^T,   x the C K_y K_x values under the filter,

so one pass is enough. Angles and matrices are not linear: they stay nearest to the filters (`layers.templates.fit`). A
ridge, a share of the mean energy, draws each fit to where it started.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.conv import CompressedConv2d
from layers.errors import OvertoneError, UsageError
from layers.series.harmonic import padded
from layers.templates.fit import least_squares_gains

__all__ = ["TemplateRegression"]

_CHUNK_VALUES = 1 << 24
"""Values under filters held at a time: 64 MiB of float32."""


class TemplateRegression:
    """Streamed least squares of one layer with templates: `add` batches, then `place`.

    Convolution groups, called parts here, have moments of their own: (C / P K_y K_x)^2 float64 values each.
    """

    def __init__(self, layer: CompressedConv2d, *, ridge: float = 1e-3) -> None:
        if layer.template_mask is None:
            raise UsageError(f"A layer in the form {layer.form} cannot be calibrated: it needs templates.")
        self.layer, self.ridge, self.template_mask = layer, ridge, layer.template_mask
        size = layer.shape.filter_channels * layer.shape.kernel[0] * layer.shape.kernel[1]
        self._gram = layer.coefficients.new_zeros(layer.shape.groups, size, size, dtype=torch.float64)
        self._cross = layer.coefficients.new_zeros(layer.shape.out_channels, size, dtype=torch.float64)

    def add(self, x: Tensor, outputs: Tensor) -> None:
        """Inputs (B, C, H, W) as the layer gets them, and the outputs (B, N, H_out, W_out) it should give."""
        layer, bias, parts = self.layer, self.layer.rounded_bias(), len(self._gram)
        if bias is not None:
            outputs = outputs - bias[:, None, None]
        values = parts * self._gram.shape[1] * outputs.shape[2] * outputs.shape[3]
        step = max(1, _CHUNK_VALUES // max(values, 1))
        for inputs, targets in zip(x.split(step), outputs.split(step), strict=True):
            inputs, padding = padded(layer.rounded(inputs), layer.margins, layer.padding_mode)
            seen = F.unfold(inputs, layer.shape.kernel, layer.dilation, padding, layer.stride)
            seen = seen.transpose(0, 1).flatten(1).unflatten(0, (parts, -1))
            wanted = targets.flatten(2).transpose(0, 1).flatten(1).unflatten(0, (parts, -1))
            self._gram += (seen @ seen.mT).double()
            self._cross += (wanted @ seen.mT).double().flatten(0, 1)

    @torch.no_grad()
    def place(self, weight: Tensor) -> None:
        """Give the layer its fitted templates, and transforms that rebuild the filters `weight` (N, C / P, ...)."""
        if not (self._gram.isfinite().all() and self._cross.isfinite().all()):
            raise OvertoneError("A layer cannot be calibrated: its inputs or outputs are not finite.")
        coefficients, gains = self._kept_coefficients(), self.layer.transforms()
        self.layer.set_coefficients(coefficients, weight)
        if self.layer.form.transform == "scalar" and gains is not None:
            assigned, found = self._rebuilt(weight)
            self.layer.set_coefficients(coefficients, weight, assigned)
            gains.copy_(found)

    def _of_parts(self, rows: Tensor, which: Tensor) -> tuple[Tensor, ...]:
        """Those rows (N, ...) of the outputs that are wanted, part by part."""
        return rows[which].split(which.view(len(self._gram), -1).sum(1).tolist())

    def _kept_coefficients(self) -> Tensor:
        """Coefficients (M, C / P, n_y, n_x) of the kept filters."""
        start, found = self.layer.get_coefficients(), []
        begun = start.double().flatten(1).split([len(part) for part in self._of_parts(self._cross, self.template_mask)])
        for gram, cross, part in zip(self._gram, self._of_parts(self._cross, self.template_mask), begun, strict=True):
            gram, cross = _by_tap(gram, self.layer), cross.unflatten(1, (self.layer.shape.filter_channels, -1))
            if self.layer.form.basis is not None:
                phi = torch.kron(*(phi.double() for phi in self.layer.bases()))
                gram, cross = torch.einsum("ctdu,ta,ub->cadb", gram, phi, phi), cross @ phi
            found.append(self._fit(gram.flatten(2).flatten(0, 1)[None], cross.flatten(1)[None], part[None])[0])
        return torch.cat(found).view(start.shape).to(start.dtype)

    def _rebuilt(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The templates (N - M,) that are assigned to rebuilt filters, and their gains (N - M, G, K_y, K_x)."""
        templates, pruned = self.layer.templates(), ~self.template_mask
        filters, cross = self._of_parts(weight, pruned), self._of_parts(self._cross, pruned)
        before = self.layer.assignment().split([len(part) for part in filters])
        parts = zip(self._gram, filters, cross, before, strict=True)
        assigned, gains = zip(*(self._rebuilt_in(templates, *part) for part in parts), strict=True)
        return torch.cat(assigned), torch.cat(gains)

    def _rebuilt_in(
        self, templates: Tensor, gram: Tensor, filters: Tensor, cross: Tensor, assigned: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same of a part's filters (R, C / P, K_y, K_x), of which each has a template before (R,).

        Where the form says so it then has the one whose gains leave the least squared error of its outputs.
        """
        groups, _, channels, *kernel = templates.shape
        moments = self._moments(gram, templates)
        cross = cross.view(len(filters), groups, channels, prod(kernel))
        wanted = torch.einsum("rgck,gmck->mrgk", cross, templates.double().flatten(3)).flatten(2)
        if self.layer.template_index is not None:
            gains = self._fit(moments, wanted, torch.zeros_like(wanted))
            assigned = (gains * (2 * wanted - gains @ moments)).sum(2).argmax(0)
        filters = filters.to(templates).unflatten(1, (groups, channels))
        start = least_squares_gains(templates.transpose(0, 1)[assigned], filters).double().flatten(1)
        wanted = wanted[assigned, torch.arange(len(assigned), device=assigned.device)]
        found = self._fit(moments[assigned], wanted[:, None], start[:, None])
        return assigned, found.view(-1, groups, *kernel)

    def _moments(self, gram: Tensor, templates: Tensor) -> Tensor:
        """Of the responses to each template in a part, (M, n, n), n = G K_y K_x."""
        groups, _, channels, *kernel = templates.shape
        templates, taps = templates.double().flatten(3), prod(kernel)
        gram = _by_tap(gram, self.layer).view(groups, channels, taps, groups, channels, taps)
        half = torch.einsum("gmck,gckhdl->mgkhdl", templates, gram)
        return torch.einsum("mgkhdl,hmdl->mgkhl", half, templates).flatten(3).flatten(1, 2)

    def _fit(self, gram: Tensor, cross: Tensor, start: Tensor) -> Tensor:
        """Rows (..., R, n) of least squares with moments (..., n, n) and (..., R, n), drawn to the start."""
        energy = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
        damping = torch.where(energy > 0, self.ridge * energy, 1.0)
        system = gram + torch.diag_embed(damping[..., None].expand(gram.shape[:-1]))
        return start + torch.linalg.solve(system, (cross - start @ gram).mT).mT


def _by_tap(gram: Tensor, layer: CompressedConv2d) -> Tensor:
    """The moments of a part's inputs as (C / P, T, C / P, T)."""
    shape = (layer.shape.filter_channels, -1)
    return gram.unflatten(1, shape).unflatten(0, shape)
