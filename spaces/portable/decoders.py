"""A compressed layer's weight, and a norm's vectors, as nodes that decode packed tensors."""

from __future__ import annotations

from torch import Tensor

from layers import CompressedConv2d, CompressedLinear, CompressedNorm
from layers.blockfloat.format import BlockFormat, ScaledFormat
from layers.compress import CompressedLayer
from layers.form import stored_tensors
from spaces.portable.filters import FilterDecoder
from spaces.portable.graph import GraphBuilder
from spaces.portable.payload import Payload

__all__ = ["Decoder"]


class Decoder:
    """What decodes the layers of a network, into one graph."""

    def __init__(self, graph: GraphBuilder, payload: Payload) -> None:
        self.graph = graph
        self.payload = payload
        self._filters: dict[CompressedConv2d, FilterDecoder] = {}

    def decode(self, layer: CompressedLayer, names: dict[str, str]) -> None:
        """Add nodes that decode what the network reads of a layer: `names` is parameter -> value of the graph."""
        stored = stored_tensors(layer.shape, layer.form)
        vectors = set(stored) if isinstance(layer, CompressedNorm) else {"bias"}
        for name in vectors & names.keys():
            self.vector(getattr(layer, name), layer.form.vector_format, names[name])
        if "weight" not in names or isinstance(layer, CompressedNorm):
            return
        if isinstance(layer, CompressedLinear):
            shape = [layer.shape.out_channels, layer.shape.in_channels]
            self.numbers(layer.coefficients, layer.form.weight_format, shape, names["weight"])
        else:
            self.filters(layer).build(names["weight"])

    def filters(self, layer: CompressedConv2d) -> FilterDecoder:
        """Return what decodes a convolution's filters and their parts, each of them once."""
        if layer not in self._filters:
            self._filters[layer] = FilterDecoder(self.graph, self.payload, self.numbers, layer)
        return self._filters[layer]

    def numbers(self, tensor: Tensor, form: BlockFormat | ScaledFormat | None, shape: list[int], out: str = "") -> str:
        """Store a tensor; return the value that has it in this shape."""
        tensor = tensor.detach().cpu().contiguous()
        if form is None or tensor.numel() == 0:
            return self.graph.constant(tensor.float().view(shape).numpy(), out)
        return self.graph.reshape(self.payload.values(tensor, form), shape, out)

    def vector(self, tensor: Tensor, form: BlockFormat | None, out: str) -> None:
        """Store a vector, which the value `out` has."""
        tensor = tensor.detach().cpu().contiguous()
        if form is None or tensor.numel() == 0:
            self.graph.constant(tensor.numpy(), out)
        else:
            self.payload.values(tensor, form, out)
