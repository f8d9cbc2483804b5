"""What all compressed layers share: a form, and rounding to block floating point in training and in evaluation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from layers.blockfloat import Rounding, quantize
from layers.blockfloat.format import BlockFormat
from layers.errors import UsageError
from layers.form import LayerForm, LayerShape

__all__ = ["QuantizedLayer"]


class QuantizedLayer(nn.Module):
    """A layer that may hold its numbers in block floating point."""

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

    def check_arithmetic(self) -> None:
        """Raise `UsageError` if the form computes in what this layer cannot."""
        if self.form.arithmetic != "float":
            raise UsageError(f"arithmetic (={self.form.arithmetic!r}) must be 'float': nothing else is available yet")

    def quantized(self, x: Tensor, form: BlockFormat | None) -> Tensor:
        """Round `x` to the format, if there is one; the gradient passes straight through."""
        return x if form is None else quantize(x, form, self.rounding if self.training else "nearest")

    def rounded_bias(self) -> Tensor | None:
        """Return the bias (N,) as it is added."""
        return None if self.bias is None else self.quantized(self.bias, self.form.vector_format)
