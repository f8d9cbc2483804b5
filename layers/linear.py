"""Linear layers in block floating point (Costain & Prisacariu, appendix C)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from layers.blockfloat import quantise
from layers.form import LayerForm, LayerShape, stored_tensors

__all__ = ["CompressedLinear"]


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
