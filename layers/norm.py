"""Norms whose vectors are held in block floating point: scale, shift, and where there are any, mean and variance.

The paper (Costain & Prisacariu, appendix C) leaves norms as they are. In a network compressed to a few per cent they
are a good part of what is left, so their values can be rounded too, each with an exponent of its own: means, variances
and scales of neighboring channels differ by orders of magnitude.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

from torch import Tensor, nn

from layers.form import LayerForm, LayerShape, stored_tensors
from layers.quantized import QuantizedLayer

__all__ = ["CompressedNorm", "compress_norm"]


class CompressedNorm(QuantizedLayer):
    """What is added to the class of a norm so that it computes with rounded vectors.

    Training rounds what trains, and gathers statistics unrounded; evaluation rounds these too.
    """

    def forward(self, x: Tensor) -> Tensor:
        """What the norm gives with rounded vectors."""
        with self._reading(self.vectors()):
            y: Tensor = super().forward(x)
        return y

    def vectors(self) -> dict[str, Tensor]:
        """The vectors (C,) that the norm computes with in its present mode, by name."""
        stored = stored_tensors(self.shape, self.form).items()
        read = {name: tensor.format for name, tensor in stored if tensor.trains or not self.training}
        return {name: self.quantized(getattr(self, name), form) for name, form in read.items()}

    @contextmanager
    def _reading(self, vectors: dict[str, Tensor]) -> Iterator[None]:
        """Have the norm's own code find these vectors where it looks for its parameters and buffers."""
        tables: tuple[dict[str, Any], ...] = (self._parameters, self._buffers)
        held = [{name: table[name] for name in table.keys() & vectors.keys()} for table in tables]
        try:
            for table, names in zip(tables, held, strict=True):
                table.update({name: vectors[name] for name in names})
            yield
        finally:
            for table, names in zip(tables, held, strict=True):
                table.update(names)

    def plain(self) -> nn.Module:
        """A copy as an ordinary norm that has the rounded vectors, for evaluation."""
        plain = copy.deepcopy(self).eval()
        for name, vector in plain.vectors().items():
            getattr(plain, name).data.copy_(vector.detach())
        plain.__class__ = type(self).__bases__[1]
        return plain


def compress_norm(norm: nn.Module, form: LayerForm) -> CompressedNorm:
    """A copy of the norm in its form; it is an instance of the norm's own class still."""
    compressed, kind = copy.deepcopy(norm), cast(Any, type(norm))
    compressed.__class__ = _rounding_class(kind)
    assert isinstance(compressed, CompressedNorm)
    compressed.shape, compressed.form = LayerShape.from_module(norm), form
    stored_tensors(compressed.shape, form)
    return compressed


@cache
def _rounding_class(norm: Any) -> Any:
    return type(f"Compressed{norm.__name__}", (CompressedNorm, norm), {})
