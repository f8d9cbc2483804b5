"""A compressed network in the few operations that every exchange format has.

Filters are rebuilt once and become ordinary weights. Inputs that are rounded to block floating point stay rounded,
exactly as `layers.quantize` rounds them, but without access to a number's bits: the exponent is estimated by a
logarithm and corrected by comparison with exact powers of two, which come from a table. So the exported graph computes
what was measured, up to the order in which a runtime adds.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers import CompressedConv1d, CompressedConv2d, CompressedLinear, CompressedNorm, compressed_layers
from layers.blockfloat import BlockFormat
from layers.compress import CompressedLayer
from layers.references import copy_with_layers

__all__ = ["PortableRounding", "portable_model"]


class PortableRounding(nn.Module):
    """`layers.quantize` as plain arithmetic; blocks of one value take any shape, blocks of channels (B, C, ...)."""

    powers: Tensor

    def __init__(self, form: BlockFormat) -> None:
        super().__init__()
        if form.block != 1 and form.axis != "channel":
            raise ValueError(f"axis (={form.axis!r}) must be 'channel' for blocks of {form.block}")
        self.bits = form.bits
        self.block = form.block
        self.lowest = form.lowest
        self.highest = -form.lowest - 1
        self.reach = form.bits - form.lowest
        self.register_buffer("powers", _powers(self.reach))

    def forward(self, x: Tensor) -> Tensor:
        """Round each block to steps of its largest value's last bit, ties to even; out of range it is zero or NaN."""
        if self.block == 1:
            return self._round(x, x.abs())
        channels = x.shape[1]
        missing = -channels % self.block
        blocks = F.pad(x, [0, 0] * (x.dim() - 2) + [0, missing]).unflatten(1, (-1, self.block))
        return self._round(blocks, blocks.abs().amax(2, keepdim=True)).flatten(1, 2)[:, :channels]

    def _round(self, x: Tensor, size: Tensor) -> Tensor:
        """Round values; `size` is the largest magnitude of each value's block."""
        exponent = self._exponent(size)
        carries = torch.round(size * self._power(self.bits - 1 - exponent)) >= 2**self.bits
        exponent = exponent + carries.to(torch.int64)
        scale = self._power(self.bits - 1 - exponent)
        step = self._power(exponent - self.bits + 1)
        steps = torch.round(x * scale)
        rounded = torch.where((size < 2.0**self.lowest) | (steps == 0), 0.0, steps * step)
        return torch.where(torch.round(size * scale) * step < 2.0**-self.lowest, rounded, torch.nan)

    def _exponent(self, size: Tensor) -> Tensor:
        """Return floor(log2(size)) as int64, exact, clamped to the format's lowest and highest exponent."""
        safe = size.clamp(2.0**self.lowest, 2.0**self.highest)
        estimate = torch.log2(safe).floor().to(torch.int64).clamp(self.lowest, self.highest)
        estimate = estimate - (self._power(estimate) > safe).to(torch.int64)
        return estimate + (self._power(estimate + 1) <= safe).to(torch.int64)

    def _power(self, exponent: Tensor) -> Tensor:
        return self.powers[exponent + self.reach]


@cache
def _powers(reach: int) -> Tensor:
    """Return 2^-reach .. 2^reach; one tensor, so that a file holds it once."""
    return torch.exp2(torch.arange(-reach, reach + 1, dtype=torch.float64)).float()


def portable_model(model: nn.Module) -> nn.Module:
    """Return a float32 copy in eval mode with each compressed layer replaced; sums may be added in another order."""

    def freeze(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        return {name: _freeze(modules[name].eval()) for name in compressed_layers(model)}

    return copy_with_layers(model, freeze).eval()


def _freeze(layer: nn.Module) -> nn.Module:
    assert isinstance(layer, CompressedLayer)
    if isinstance(layer, CompressedNorm):
        return layer.plain()
    if isinstance(layer, CompressedLinear):
        return _Linear(layer)
    return _Conv1d(layer) if isinstance(layer, CompressedConv1d) else _Conv2d(layer)


class _Frozen(nn.Module):
    filters: Tensor
    bias: Tensor | None

    def __init__(self, layer: CompressedConv2d | CompressedLinear) -> None:
        super().__init__()
        vars(self).update(layer.carried)
        self.register_buffer("filters", layer.filters().detach().clone())
        bias = layer.rounded_bias()
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        form = layer.form.activation_format
        self.rounding = nn.Identity() if form is None else PortableRounding(form)

    @property
    def weight(self) -> Tensor:
        """The filters, as code of the network may read them."""
        return self.filters


class _Linear(_Frozen):
    def forward(self, x: Tensor) -> Tensor:
        rounded = self.rounding(x.reshape(-1, x.shape[-1])).reshape(x.shape)
        return F.linear(rounded, self.filters, self.bias)


class _Conv2d(_Frozen):
    groups: int

    def __init__(self, layer: CompressedConv2d) -> None:
        super().__init__(layer)
        self.strides = layer.strides
        self.dilations = layer.dilations
        left, right, top, bottom = layer.margins
        uneven = layer.padding_mode != "zeros" or (left, top) != (right, bottom)
        self.inner = (0, 0) if uneven else (top, left)
        self.margins = layer.margins if uneven else None
        self.mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode

    def forward(self, x: Tensor) -> Tensor:
        x = self.rounding(x) if x.dim() == 4 else self.rounding(x[None])[0]
        if self.margins is not None:
            x = F.pad(x, self.margins, mode=self.mode)
        return F.conv2d(x, self.filters, self.bias, self.strides, self.inner, self.dilations, self.groups)


class _Conv1d(_Conv2d):
    """A 1-D convolution, as one of images with a single row."""

    @property
    def weight(self) -> Tensor:
        """The filters (N, C / groups, K)."""
        return self.filters.squeeze(-2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.unsqueeze(-2)).squeeze(-2)
