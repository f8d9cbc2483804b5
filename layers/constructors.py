"""The papers' layers by their names, from a random start: convolutions that take what `nn.Conv2d` takes."""

from __future__ import annotations

from typing import Literal

from torch import nn

from layers.conv import CompressedConv2d
from layers.form import LayerForm
from layers.series.basis import Basis
from layers.templates.transforms import Transform

__all__ = ["ChebConv2d", "CosConv2d", "TemplateConv2d"]

_Size = int | tuple[int, int]


class _SeriesConv2d(CompressedConv2d):
    basis: Basis

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
        super().__init__(conv, LayerForm(basis=self.basis, harmonics=pair))


class CosConv2d(_SeriesConv2d):
    """CosConv: filters are cosine series with `harmonics` (y, x) terms; otherwise as `nn.Conv2d`."""

    basis = "cosine"


class ChebConv2d(_SeriesConv2d):
    """ChebConv: filters are Chebyshev series with `harmonics` (y, x) terms; otherwise as `nn.Conv2d`."""

    basis = "chebyshev"


class TemplateConv2d(CompressedConv2d):
    """Filters rebuilt from `templates` templates in `template_groups` channel groups by spatial transforms."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size,
        templates: int,
        *,
        template_groups: int = 1,
        transform: Transform = "scalar",
        stride: _Size = 1,
        padding: str | _Size = 0,
        dilation: _Size = 1,
        bias: bool = True,
    ) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=bias)
        super().__init__(conv, LayerForm(templates=templates, groups=template_groups, transform=transform))
