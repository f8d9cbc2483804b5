"""Linear layers in block floating point (Costain & Prisacariu, appendix C)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from layers.form import LayerForm, LayerShape, stored_tensors
from layers.quantized import QuantizedLayer

__all__ = ["CompressedLinear"]


class CompressedLinear(QuantizedLayer):
    """A linear layer with weights, and inputs if asked, in block floating point: (..., C) to (..., N)."""

    def __init__(self, linear: nn.Linear, form: LayerForm) -> None:
        super().__init__()
        self.carry_attributes(linear)
        self.shape, self.form = LayerShape.from_module(linear), form
        self.check_arithmetic()
        stored = stored_tensors(self.shape, form)["coefficients"]
        self.coefficients = nn.Parameter(linear.weight.detach().clone().view(stored.shape))
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone())

    @property
    def weight(self) -> Tensor:
        """The weight (N, C) that the layer multiplies with; it is stored nowhere."""
        return self.filters()

    def filters(self) -> Tensor:
        """Return the weight (N, C) in its format."""
        return self.quantized(self.coefficients.view(self.shape.out_channels, -1), self.form.weight_format)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply; the input is rounded first if the form has `activation_bits`."""
        form = self.form.activation_format
        if form is not None:
            x = self.quantized(x.reshape(-1, x.shape[-1]), form).view(x.shape)
        return F.linear(x, self.filters(), self.rounded_bias())
