"""Compressed convolutions: how their stored tensors start, are fitted and pruned, and that they convolve.

The filters come from the stored tensors (`layers.filters`); then follows an ordinary convolution of the input, rounded
to block floating point if the form says so, in one of several exact forms (`layers.execution`). A 1-D convolution is
one of images with a single row.
"""

from __future__ import annotations

from functools import partial
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.errors import UsageError
from layers.execution import Execution, convolve, convolve_dense, executions_of, responses
from layers.filters import FilterLayer
from layers.form import LayerForm
from layers.integer.calls import hidden_calls, layer_call
from layers.series.allocation import allocate, supports
from layers.series.harmonic import least_squares_coefficients, series_taps
from layers.templates.assignment import residual_assignment
from layers.templates.gradual import Residuals
from layers.templates.rebuild import choose_templates, fitted_transforms

__all__ = ["CompressedConv1d", "CompressedConv2d"]


class CompressedConv2d(FilterLayer):
    """A convolution in a compressed form, started at the least-squares answer to the filters of a dense one.

    Takes (B, C, H, W) and gives (B, N, H_out, W_out) like the `nn.Conv2d` it is made from, whatever its stride,
    padding, dilation, groups and padding mode, and (C, H, W) too. `execution` picks one of `executions`.
    """

    def __init__(self, conv: nn.Conv2d, form: LayerForm, saliency: Tensor | None = None) -> None:
        """Keep the filters of largest saliency (N,) as templates; without it those of largest magnitude."""
        super().__init__(conv, form)
        self.execution: Execution = "dense"
        if form.allocation is not None:
            self._start_allocated(conv.weight.detach())
            return
        taps = conv.weight.detach()
        if form.templates is not None:
            self.template_mask = choose_templates(conv.weight, form.templates, saliency)
            taps = taps[self.template_mask]
        if self.phi_y is not None and self.phi_x is not None:
            taps = least_squares_coefficients(taps, self.phi_y, self.phi_x)
        self.set_coefficients(taps, conv.weight)

    def _start_allocated(self, weight: Tensor) -> None:
        """Start at the supports and coefficients whose filters are nearest to the given ones."""
        fits, errors = [], []
        for n_y, n_x in supports(self.shape.kernel):
            phi_y, phi_x = (phi[:, :n] for phi, n in zip(self.bases(), (n_y, n_x), strict=True))
            coefficients = least_squares_coefficients(weight, phi_y, phi_x)
            errors.append((series_taps(coefficients, phi_y, phi_x) - weight).square().sum((1, 2, 3)))
            fits.append(F.pad(coefficients, (0, self.shape.kernel[1] - n_x, 0, self.shape.kernel[0] - n_y)))
        chosen = self.choose_supports(torch.stack(errors, 1))
        self.set_coefficients(torch.stack(fits)[chosen, torch.arange(len(chosen))], weight)

    def choose_supports(self, errors: Tensor) -> Tensor:
        """Allocate the coefficients by each filter's error (N, K_y K_x) with each support; return the supports (N,)."""
        assert self.form.harmonics is not None
        chosen = allocate(errors, self.shape.kernel, self.shape.out_channels * prod(self.form.harmonics))
        self.frequency_support = chosen.to(torch.uint8)
        self._index_supports()
        return chosen

    @torch.no_grad()
    def set_coefficients(
        self, coefficients: Tensor, weight: Tensor | None = None, template_index: Tensor | None = None
    ) -> None:
        """Set the coefficients (M, C / groups, n_y, n_x) of the templates, of all filters if there are no templates.

        Coefficients that are allocated to filters are given for all K_y K_x harmonics, and those within each filter's
        support are taken. Where templates are transformed, transforms are set to those that bring the templates nearest
        to the filters `weight` (N, C / groups, K_y, K_x). A form that assigns templates takes `template_index`
        (N - M,), or else the nearest.
        """
        self.coefficients.copy_(self.stored(coefficients))
        parameters = self.transforms()
        if self.template_mask is None or parameters is None or weight is None:
            return
        target = (self._transform(), weight, self.templates(), self.template_mask)
        if self.template_index is not None:
            self.template_index.copy_(residual_assignment(*target) if template_index is None else template_index)
        parameters.copy_(fitted_transforms(*target, self.assignment()))

    def get_coefficients(self) -> Tensor:
        """Return the coefficients as `set_coefficients` takes them, unrounded."""
        return self.rearranged(self.coefficients)

    def stored(self, coefficients: Tensor) -> Tensor:
        """Return numbers in the order of `set_coefficients` in that of what is stored."""
        if self.support_index is not None:
            return coefficients.permute(0, 2, 3, 1).flatten(0, 2)[self.support_index]
        return coefficients.unflatten(1, (self.form.groups, -1)).transpose(0, 1).flatten(0, 1)

    def rearranged(self, stored: Tensor) -> Tensor:
        """Return numbers in the order of what is stored in that of `set_coefficients`; 0 outside supports."""
        if self.support_index is not None:
            return self._expanded(stored)
        return stored.unflatten(0, (self.form.groups, -1)).transpose(0, 1).flatten(1, 2)

    @torch.no_grad()
    def defer_pruning(self, weight: Tensor, saliency: Tensor | None = None) -> None:
        """Keep pruned filters as those of `weight` (N, C / groups, K_y, K_x) in training, until `advance_pruning`.

        The least salient (N,) are pruned first; saliency is the L2 norm by default. In evaluation all are pruned.
        """
        assert self.template_mask is not None
        pruned = ~self.template_mask
        saliency = weight.double().flatten(1).norm(dim=1) if saliency is None else saliency
        weight = weight.view(len(weight), -1, *self.shape.kernel).to(self.coefficients)
        residuals = (weight - self._build_filters())[pruned]
        self.residuals = Residuals(residuals, saliency.to(pruned.device)[pruned])

    def advance_pruning(self, share: float) -> None:
        """Prune this share (0 to 1) of the filters that were deferred; 1 is irreversible."""
        if self.residuals is not None:
            self.residuals.prune(share)
        if share >= 1:
            self.residuals = None

    @property
    def executions(self) -> tuple[Execution, ...]:
        """The exact forms that this layer can run in."""
        return executions_of(self)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; the input is rounded first if the form has `activation_bits`."""
        if self.execution not in self.executions:
            options = ", ".join(self.executions)
            raise UsageError(f"execution (={self.execution!r}) must be one of {options} in the form {self.form}")
        if x.dim() == 3:
            return self.forward(x[None])[0]
        is_deferred = self.training and self.residuals is not None
        with hidden_calls():
            rounded = self.quantized(x, self.form.activation_format)
            product = self.product(rounded, partial(convolve_dense, self))
            if product is None or torch.is_grad_enabled():
                y = convolve(self, self.computed_input(rounded), "dense" if is_deferred else self.execution)
            else:
                y = product.values()
        return layer_call(self, x, y, product)

    def rounded(self, x: Tensor) -> Tensor:
        """Round the input as the convolution does."""
        return self.computed_input(self.quantized(x, self.form.activation_format))

    def responses(self, x: Tensor) -> Tensor:
        """Return the basis responses (B, C n_y n_x, H_out, W_out) that the coefficients mix into the output."""
        return responses(self, self.rounded(x))

    def extra_repr(self) -> str:
        """Return shape and form in a line."""
        shape = self.shape
        return f"{shape.in_channels}, {shape.out_channels}, kernel={shape.kernel}, stride={self.strides}, {self.form}"


class CompressedConv1d(CompressedConv2d):
    """A 1-D convolution in a compressed form: (B, C, L) to (B, N, L_out); harmonics are (1, n)."""

    def __init__(self, conv: nn.Conv1d, form: LayerForm, saliency: Tensor | None = None) -> None:
        super().__init__(_with_one_row(conv), form, saliency)
        self.carry_attributes(conv)

    @property
    def weight(self) -> Tensor:
        """The filters (N, C / groups, K), built anew."""
        return self.filters().squeeze(-2)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; the input is rounded first if the form has `activation_bits`."""
        return super().forward(x.unsqueeze(-2)).squeeze(-2)


def _with_one_row(conv: nn.Conv1d) -> nn.Conv2d:
    """Return the same convolution of images with a single row."""
    flat = nn.utils.skip_init(
        nn.Conv2d,
        conv.in_channels,
        conv.out_channels,
        (1, conv.kernel_size[0]),
        stride=(1, conv.stride[0]),
        padding=conv.padding if isinstance(conv.padding, str) else (0, conv.padding[0]),
        dilation=(1, conv.dilation[0]),
        groups=conv.groups,
        bias=False,
        padding_mode=conv.padding_mode,
    )
    flat.weight = nn.Parameter(conv.weight.detach().unsqueeze(-2))
    flat.bias = conv.bias
    return flat
