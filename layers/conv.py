"""Compressed layers: one weight built in independent steps from the few tensors that are stored.

Coefficients -> (block floating point) -> series -> templates' taps -> gains -> filters; then an ordinary convolution
of the input, itself rounded to block floating point. Each step is left out where its knob is `None`. Sources: Costain
& Prisacariu (series, block floating point); Miles & Mikolajczyk (templates); the combination is ours.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.basis import Family, basis_matrix
from layers.blockfloat import quantise
from layers.errors import UsageError
from layers.form import LayerForm, LayerShape, stored_tensors
from layers.harmonic import factored_conv2d, least_squares_coefficients, series_taps
from layers.template import choose_templates, least_squares_gains, rebuild_filters, two_stage_conv2d

__all__ = ["ChebConv2d", "CompressedConv2d", "CompressedLinear", "CosConv2d", "TemplateConv2d"]

Execution = Literal["dense", "factored", "two_stage"]
_Size = int | tuple[int, int]


class CompressedConv2d(nn.Module):
    """A convolution in a compressed form, started at the least-squares answer to the filters of a dense one.

    Takes (B, C, H, W) and gives (B, N, H_out, W_out) like the `nn.Conv2d` it is made from, whatever its stride,
    padding, dilation, groups and padding mode. `execution` picks among exact forms: `dense` builds the filters,
    `factored` (series without templates) and `two_stage` (templates, ungrouped convolution) do not.
    """

    phi_y: Tensor | None
    phi_x: Tensor | None
    kept: Tensor | None

    def __init__(self, conv: nn.Conv2d, form: LayerForm) -> None:
        super().__init__()
        self.shape, self.form = LayerShape.of(conv), form
        self.stride = (conv.stride[0], conv.stride[1])
        self.dilation = (conv.dilation[0], conv.dilation[1])
        left, right, top, bottom = conv._reversed_padding_repeated_twice
        self.margins = (left, right, top, bottom)
        self.padding_mode = conv.padding_mode
        self.execution: Execution = "dense"
        stored_tensors(self.shape, form)
        self._set_bases(conv.weight)
        kept = None if form.templates is None else choose_templates(conv.weight, form.templates)
        self.register_buffer("kept", kept)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())
        with torch.no_grad():
            templates = conv.weight if kept is None else conv.weight[kept]
            coefficients = templates.unflatten(1, (form.groups, -1)).transpose(0, 1).flatten(0, 1)
            if self.phi_y is not None and self.phi_x is not None:
                coefficients = least_squares_coefficients(coefficients, self.phi_y, self.phi_x)
            self.coefficients = nn.Parameter(coefficients.detach().clone().contiguous())
            if kept is not None:
                self.gains = nn.Parameter(least_squares_gains(conv.weight, self._templates(), kept))

    def _set_bases(self, like: Tensor) -> None:
        bases: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.form.basis is not None and self.form.harmonics is not None:
            sizes = zip(self.shape.kernel, self.form.harmonics, strict=True)
            bases = tuple(basis_matrix(self.form.basis, k, n).to(like) for k, n in sizes)  # type: ignore[assignment]
        self.register_buffer("phi_y", bases[0], persistent=False)
        self.register_buffer("phi_x", bases[1], persistent=False)

    def filters(self) -> Tensor:
        """The filters (N, C / groups, K_y, K_x) that the stored tensors stand for."""
        templates = self._templates()
        if self.kept is None:
            return templates[0]
        return rebuild_filters(templates, self._stored(self.gains), self.kept)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; the input is rounded first where the form has bits."""
        if self.form.activation_format is not None:
            x = quantise(x, self.form.activation_format)
        left, right, top, bottom = self.margins
        padding = (top, left)
        if self.padding_mode != "zeros" or (left, top) != (right, bottom):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = F.pad(x, self.margins, mode=mode), (0, 0)
        if self.execution == "dense":
            return F.conv2d(x, self.filters(), self.bias, self.stride, padding, self.dilation, self.shape.groups)
        y = self._without_filters(x, padding)
        return y if self.bias is None else y + self.bias[:, None, None].to(y.dtype)

    def _without_filters(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        stride, dilation, groups = self.stride, self.dilation, self.shape.groups
        if self.kept is not None and self.execution == "two_stage" and groups == 1:
            templates, gains = self._templates(), self._stored(self.gains)
            return two_stage_conv2d(x, templates, gains, self.kept, stride=stride, padding=padding, dilation=dilation)
        if self.kept is None and self.execution == "factored" and self.phi_y is not None and self.phi_x is not None:
            mix = self._stored(self.coefficients)
            return factored_conv2d(
                x, mix, self.phi_y, self.phi_x, stride=stride, padding=padding, dilation=dilation, groups=groups
            )
        raise UsageError(f"execution (={self.execution!r}) does not exist for a layer in the form {self.form}.")

    def _stored(self, tensor: Tensor) -> Tensor:
        form = self.form.weight_format
        return tensor if form is None else quantise(tensor, form)

    def _templates(self) -> Tensor:
        """Taps (G, M, C / G, K_y, K_x) of the templates."""
        taps = self._stored(self.coefficients)
        if self.phi_y is not None and self.phi_x is not None:
            taps = series_taps(taps, self.phi_y, self.phi_x)
        return taps.unflatten(0, (self.form.groups, -1))

    def extra_repr(self) -> str:
        """Shape and form in a line."""
        shape = self.shape
        return f"{shape.in_channels}, {shape.out_channels}, kernel={shape.kernel}, stride={self.stride}, {self.form}"


class CompressedLinear(nn.Module):
    """A linear layer whose weights and inputs are held in block floating point; (..., C) to (..., N)."""

    def __init__(self, linear: nn.Linear, form: LayerForm) -> None:
        super().__init__()
        self.shape, self.form = LayerShape.of(linear), form
        stored = stored_tensors(self.shape, form)["coefficients"]
        self.coefficients = nn.Parameter(linear.weight.detach().clone().view(stored.shape))
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone())

    def filters(self) -> Tensor:
        """The weight (N, C)."""
        form, weight = self.form.weight_format, self.coefficients.view(self.shape.out_channels, -1)
        return weight if form is None else quantise(weight, form)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply; the input is rounded first where the form has bits."""
        if self.form.activation_format is not None:
            x = quantise(x, self.form.activation_format)
        return F.linear(x, self.filters(), self.bias)


class _SeriesConv2d(CompressedConv2d):
    family: Family

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size,
        harmonics: _Size,
        *,
        stride: _Size = 1,
        padding: str | _Size = 0,
        dilation: _Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
    ) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        pair = harmonics if isinstance(harmonics, tuple) else (harmonics, harmonics)
        super().__init__(conv, LayerForm(basis=self.family, harmonics=pair))


class CosConv2d(_SeriesConv2d):
    """CosConv: filters are cosine series with `harmonics` (y, x) terms; otherwise as `nn.Conv2d`."""

    family = "cosine"


class ChebConv2d(_SeriesConv2d):
    """ChebConv: filters are Chebyshev series with `harmonics` (y, x) terms; otherwise as `nn.Conv2d`."""

    family = "chebyshev"


class TemplateConv2d(CompressedConv2d):
    """Filters rebuilt from `templates` templates in `template_groups` channel groups by scalar transforms."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size,
        templates: int,
        *,
        template_groups: int = 1,
        stride: _Size = 1,
        padding: str | _Size = 0,
        dilation: _Size = 1,
        bias: bool = True,
    ) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=bias)
        super().__init__(conv, LayerForm(templates=templates, groups=template_groups, transform="scalar"))
