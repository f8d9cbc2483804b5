"""What all compressed layers share: a form, and rounding to its formats in training and in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from layers.blockfloat import Rounding, quantize
from layers.blockfloat.format import BlockFormat, ScaledFormat
from layers.form import LayerForm, LayerShape
from layers.integer.inputs import input_grid, is_rounding, prepare_input, round_input
from layers.integer.kernels import Product
from layers.integer.rounding import activation_codes, round_filters

__all__ = ["QuantizedLayer"]


class QuantizedLayer(nn.Module):
    """A layer that may hold its numbers in few bits."""

    shape: LayerShape
    form: LayerForm
    rounding: Rounding = "nearest"
    """How numbers are rounded in training; evaluation always rounds to nearest even."""
    bias: Tensor | None
    carried: dict[str, Any]
    """Plain attributes of the layer that this one replaces."""

    def carry_attributes(self, layer: nn.Module) -> None:
        """Take over plain attributes of the layer that this one replaces (`kernel_size`, the user's own).

        Code of the network may read them.
        """
        self.carried = {name: value for name, value in vars(layer).items() if not name.startswith("_")}
        self.carried.pop("training", None)
        vars(self).update(self.carried)

    @property
    def is_int8(self) -> bool:
        """Whether the layer computes in int8."""
        return self.form.arithmetic == "int8"

    def prepare_arithmetic(self) -> None:
        """Make room for what the form's arithmetic needs besides."""
        if self.is_int8:
            prepare_input(self)

    def computed_input(self, x: Tensor) -> Tensor:
        """Return the input as the layer computes with it."""
        return round_input(self, x) if self.is_int8 else x

    def computed_filters(self, filters: Tensor) -> Tensor:
        """Return filters (N, ...), as built, as the layer computes with them."""
        return round_filters(filters) if self.is_int8 else filters

    def filter_codes(self) -> tuple[Tensor, Tensor]:
        """Return the filters' codes (N, ...) and scales (N,) in int8."""
        raise NotImplementedError

    def product(self, x: Tensor, multiply: Callable[[Tensor, Tensor], Tensor]) -> Product | None:
        """Multiply codes of the input with those of the filters, if the layer is in int8 and evaluates."""
        if not self.is_int8 or self.training or not is_rounding():
            return None
        with torch.no_grad():
            codes, scales = self.filter_codes()
            grid = input_grid(self)
            return Product(multiply(activation_codes(x, grid), codes), grid[0], scales, shift=self.rounded_bias())

    def quantized(self, x: Tensor, form: BlockFormat | ScaledFormat | None) -> Tensor:
        """Round `x` to the format, if there is one; the gradient passes straight through."""
        return x if form is None else quantize(x, form, self.rounding if self.training else "nearest")

    def rounded_bias(self) -> Tensor | None:
        """Return the bias (N,) as it is added."""
        return None if self.bias is None else self.quantized(self.bias, self.form.vector_format)
