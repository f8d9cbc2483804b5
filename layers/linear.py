"""Linear layers in block floating point (Costain & Prisacariu, appendix C)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.form import LayerForm, LayerShape, stored_tensors
from layers.integer.calls import hidden_calls, layer_call
from layers.integer.rounding import filter_codes
from layers.quantized import QuantizedLayer

__all__ = ["CompressedLinear"]


class CompressedLinear(QuantizedLayer):
    """A linear layer with weights, and inputs if asked, in block floating point: (..., C) to (..., N)."""

    def __init__(self, linear: nn.Linear, form: LayerForm) -> None:
        super().__init__()
        self.carry_attributes(linear)
        self.shape, self.form = LayerShape.from_module(linear), form
        self.prepare_arithmetic()
        stored = stored_tensors(self.shape, form)["coefficients"]
        self.coefficients = nn.Parameter(linear.weight.detach().clone().view(stored.shape))
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone())

    @property
    def weight(self) -> Tensor:
        """The weight (N, C) that the layer multiplies with; it is stored nowhere."""
        return self.filters()

    def filters(self) -> Tensor:
        """Return the weight (N, C) as the layer computes with it: in its format, then in that of its arithmetic."""
        return self.computed_filters(self._stored_weight())

    def rounded(self, x: Tensor) -> Tensor:
        """Round the input (..., C) as the product does."""
        return self.computed_input(self._in_format(x))

    @torch.no_grad()
    def set_coefficients(self, coefficients: Tensor) -> None:
        """Set the stored weight (N, C, 1, 1)."""
        self.coefficients.copy_(coefficients)

    def get_coefficients(self) -> Tensor:
        """Return the stored weight (N, C, 1, 1), unrounded."""
        return self.coefficients

    def stored(self, coefficients: Tensor) -> Tensor:
        """Return numbers (N, C, 1, 1) as they are stored."""
        return coefficients

    def rearranged(self, stored: Tensor) -> Tensor:
        """Return stored numbers as `get_coefficients` does."""
        return stored

    def filter_codes(self) -> tuple[Tensor, Tensor]:
        """Return the weight's codes (N, C) and scales (N,) in int8."""
        return filter_codes(self._stored_weight())

    def forward(self, x: Tensor) -> Tensor:
        """Multiply; the input is rounded first if the form says so."""
        with hidden_calls():
            rounded = self._in_format(x)
            product = self.product(rounded.reshape(-1, x.shape[-1]), F.linear)
            if product is None or torch.is_grad_enabled():
                y = F.linear(self.computed_input(rounded), self.filters(), self.rounded_bias())
            else:
                y = product.values().view(*x.shape[:-1], -1)
        return layer_call(self, x, y, product if x.dim() == 2 else None)

    def _in_format(self, x: Tensor) -> Tensor:
        form = self.form.activation_format
        return x if form is None else self.quantized(x.reshape(-1, x.shape[-1]), form).view(x.shape)

    def _stored_weight(self) -> Tensor:
        return self.quantized(self.coefficients.view(self.shape.out_channels, -1), self.form.weight_format)
