"""Norms with their vectors in block floating point: scale, shift, and if there are any, mean and variance.

The paper (Costain & Prisacariu, appendix C) leaves norms as they are. In a network compressed to a few per cent they
are a good part of what is left, so their values can be rounded too, each with its own exponent: means, variances and
scales of neighboring channels differ by orders of magnitude.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

from torch import Tensor, nn

from layers.form import LayerForm, LayerShape, stored_tensors
from layers.integer.calls import hidden_calls
from layers.quantized import QuantizedLayer

__all__ = ["CompressedNorm", "compress_norm"]


class CompressedNorm(QuantizedLayer):
    """Mixin for a norm's class: it makes the norm compute with rounded vectors.

    Training rounds what trains, and gathers statistics unrounded; evaluation rounds them too.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize with rounded vectors."""
        with hidden_calls():
            vectors = self.vectors()
        with self._substituted(vectors):
            y: Tensor = super().forward(x)
        return y

    def vectors(self) -> dict[str, Tensor]:
        """Return the vectors (C,) that the norm computes with in its present mode, by name."""
        stored = stored_tensors(self.shape, self.form).items()
        formats = {name: tensor.format for name, tensor in stored if tensor.trains or not self.training}
        return {name: self.quantized(getattr(self, name), form) for name, form in formats.items()}

    @contextmanager
    def _substituted(self, vectors: dict[str, Tensor]) -> Iterator[None]:
        """Have the norm's own code read these vectors as its parameters and buffers."""
        # Not `torch.func.functional_call`: it cannot call the base class' forward, and with a second norm it is slower.
        tables: tuple[dict[str, Any], ...] = (self._parameters, self._buffers)
        originals = [{name: table[name] for name in table.keys() & vectors.keys()} for table in tables]
        try:
            for table, original in zip(tables, originals, strict=True):
                table.update({name: vectors[name] for name in original})
            yield
        finally:
            for table, original in zip(tables, originals, strict=True):
                table.update(original)

    def plain(self) -> nn.Module:
        """Return a copy as an ordinary norm that has the rounded vectors, for evaluation."""
        plain = copy.deepcopy(self).eval()
        for name, vector in plain.vectors().items():
            getattr(plain, name).data.copy_(vector.detach())
        plain.__class__ = type(self).__bases__[1]
        return plain


def compress_norm(norm: nn.Module, form: LayerForm) -> CompressedNorm:
    """Return a copy of the norm in its form, still an instance of the norm's own class."""
    compressed, kind = copy.deepcopy(norm), cast(Any, type(norm))
    compressed.__class__ = _rounding_class(kind)
    assert isinstance(compressed, CompressedNorm)
    compressed.shape, compressed.form = LayerShape.from_module(norm), form
    stored_tensors(compressed.shape, form)
    return compressed


@cache
def _rounding_class(norm: Any) -> Any:
    return type(f"Compressed{norm.__name__}", (CompressedNorm, norm), {})
