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

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.conv import CompressedConv2d
from layers.errors import OvertoneError, UsageError
from layers.series.harmonic import padded

__all__ = ["TemplateRegression"]

_CHUNK_VALUES = 1 << 24
"""Values under filters held at a time: 64 MiB of float32."""


class TemplateRegression:
    """Streamed least squares of one ungrouped layer with templates: `add` batches, then `place`.

    Memory: (C K_y K_x)^2 float64 values.
    """

    def __init__(self, layer: CompressedConv2d, *, ridge: float = 1e-3) -> None:
        if layer.kept is None or layer.shape.groups > 1:
            raise UsageError(f"A layer in the form {layer.form} cannot be calibrated: it needs templates, ungrouped.")
        self.layer, self.ridge = layer, ridge
        size = layer.shape.in_channels * layer.shape.kernel[0] * layer.shape.kernel[1]
        self._gram = layer.coefficients.new_zeros(size, size, dtype=torch.float64)
        self._cross = layer.coefficients.new_zeros(layer.shape.out_channels, size, dtype=torch.float64)

    def add(self, x: Tensor, outputs: Tensor) -> None:
        """Inputs (B, C, H, W) as the layer gets them, and the outputs (B, N, H_out, W_out) it should give."""
        layer, bias = self.layer, self.layer.rounded_bias()
        if bias is not None:
            outputs = outputs - bias[:, None, None]
        step = max(1, _CHUNK_VALUES // max(len(self._gram) * outputs.shape[2] * outputs.shape[3], 1))
        for inputs, targets in zip(x.split(step), outputs.split(step), strict=True):
            inputs, padding = padded(layer.rounded(inputs), layer.margins, layer.padding_mode)
            seen = F.unfold(inputs, layer.shape.kernel, layer.dilation, padding, layer.stride)
            seen = seen.transpose(0, 1).flatten(1)
            self._gram += (seen @ seen.mT).double()
            self._cross += (targets.flatten(2).transpose(0, 1).flatten(1) @ seen.mT).double()

    @torch.no_grad()
    def place(self, weight: Tensor) -> None:
        """Give the layer its fitted templates, and transforms that rebuild the filters `weight` (N, C, K_y, K_x)."""
        if not (self._gram.isfinite().all() and self._cross.isfinite().all()):
            raise OvertoneError("A layer cannot be calibrated: its inputs or outputs are not finite.")
        coefficients, gains = self._kept_coefficients(), self.layer.transforms()
        self.layer.begin_at(coefficients, weight)
        if self.layer.form.transform == "scalar" and gains is not None:
            moments, wanted = self._gain_moments()
            if self.layer.assigned is not None:
                self.layer.begin_at(coefficients, weight, self._least_residual(moments, wanted))
            assigned = self.layer.assignment()
            wanted = wanted[assigned, torch.arange(len(assigned), device=assigned.device)]
            start = gains.double().flatten(1)
            gains.copy_(self._fit(moments[assigned], wanted[:, None], start[:, None]).view(gains.shape))

    def _kept_coefficients(self) -> Tensor:
        """Coefficients (M, C, n_y, n_x) of the kept filters."""
        layer, start = self.layer, self.layer.kept_coefficients()
        gram, cross = self._by_tap(), self._cross[layer.kept].unflatten(1, (layer.shape.in_channels, -1))
        if layer.form.basis is not None:
            phi = torch.kron(*(phi.double() for phi in layer.bases()))
            gram, cross = torch.einsum("ctdu,ta,ub->cadb", gram, phi, phi), cross @ phi
        gram, cross = gram.flatten(2).flatten(0, 1), cross.flatten(1)
        found = self._fit(gram[None], cross[None], start.double().flatten(1)[None])[0]
        return found.view(start.shape).to(start.dtype)

    def _gain_moments(self) -> tuple[Tensor, Tensor]:
        """Of the responses to each template that the layer has now, (M, n, n), n = G K_y K_x; and with what is wanted.

        Those are the products (M, N - M, n) with the outputs that the rebuilt filters should give.
        """
        assert self.layer.kept is not None
        templates = self.layer.templates().double().flatten(3)
        groups, _, channels, taps = templates.shape
        gram = self._by_tap().view(groups, channels, taps, groups, channels, taps)
        cross = self._cross[~self.layer.kept].view(-1, groups, channels, taps)
        half = torch.einsum("gmck,gckhdl->mgkhdl", templates, gram)
        moments = torch.einsum("mgkhdl,hmdl->mgkhl", half, templates)
        wanted = torch.einsum("rgck,gmck->mrgk", cross, templates)
        return moments.flatten(3).flatten(1, 2), wanted.flatten(2)

    def _least_residual(self, moments: Tensor, wanted: Tensor) -> Tensor:
        """The template whose gains leave the least squared error of each rebuilt filter's outputs, (N - M,)."""
        gains = self._fit(moments, wanted, torch.zeros_like(wanted))
        return (gains * (2 * wanted - gains @ moments)).sum(2).argmax(0)

    def _fit(self, gram: Tensor, cross: Tensor, start: Tensor) -> Tensor:
        """Rows (..., R, n) of least squares with moments (..., n, n) and (..., R, n), drawn to the start."""
        energy = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
        damping = torch.where(energy > 0, self.ridge * energy, 1.0)
        system = gram + torch.diag_embed(damping[..., None].expand(gram.shape[:-1]))
        return start + torch.linalg.solve(system, (cross - start @ gram).mT).mT

    def _by_tap(self) -> Tensor:
        """The inputs' moments as (C, T, C, T)."""
        shape = (self.layer.shape.in_channels, -1)
        return self._gram.unflatten(1, shape).unflatten(0, shape)
