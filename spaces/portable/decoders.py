"""A compressed layer's weight, and a norm's vectors, as nodes that decode packed tensors."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto
from torch import Tensor

from layers import CompressedConv2d, CompressedLinear, CompressedNorm
from layers.blockfloat.format import BlockFormat
from layers.compress import CompressedLayer
from layers.form import PARAMETERS, stored_indices, stored_tensors
from layers.series.sampling import basis_matrix
from spaces.portable.graph import GraphBuilder
from spaces.portable.payload import Payload

__all__ = ["Decoder"]


class Decoder:
    """What decodes the layers of a network, into one graph."""

    def __init__(self, graph: GraphBuilder, payload: Payload) -> None:
        self.graph = graph
        self.payload = payload

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
            _Filters(self, layer).build(names["weight"])

    def numbers(self, tensor: Tensor, form: BlockFormat | None, shape: list[int], out: str = "") -> str:
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


class _Filters:
    """The filters of a convolution, step by step as in `layers.filters`."""

    def __init__(self, decoder: Decoder, layer: CompressedConv2d) -> None:
        self._decoder = decoder
        self._graph = decoder.graph
        self._layer = layer
        self._form = layer.form
        self._kernel = layer.shape.kernel
        self._taps = self._kernel[0] * self._kernel[1]
        self._shape = list(layer.weight.shape)

    def build(self, out: str) -> None:
        """Add nodes whose last has the filters, in the shape of the replaced convolution's weight."""
        form, graph = self._form, self._graph
        if form.templates is None:
            self._taps_of_all(self._shape, out)
            return
        groups, count = form.groups, form.templates
        shape = [groups, count, self._layer.shape.filter_channels // groups, self._taps]
        base = self._taps_of_all(shape)
        base = graph.node("Transpose", base, perm=[1, 0, 2, 3])
        order = self._order()
        if form.transform == "zero":
            graph.call("Z", base, order, out=out, d=self._shape, m=count)
        elif form.transform == "scalar":
            gains = self._transforms([-1, groups, 1, self._taps])
            graph.call("G", base, gains, self._sources(), order, out=out, d=self._shape)
        else:
            graph.call("O", base, self._operators(), self._sources(), order, out=out, d=self._shape)

    def _taps_of_all(self, shape: list[int], out: str = "") -> str:
        """Return the taps of all filters, or templates, that are stored."""
        form, layer = self._form, self._layer
        if form.basis is None or form.harmonics is None:
            return self._decoder.numbers(layer.coefficients, form.weight_format, shape, out)
        if form.allocation is None:
            products = form.harmonics[0] * form.harmonics[1]
            rows = [layer.coefficients.numel() // products, products]
            coefficients = self._decoder.numbers(layer.coefficients, form.weight_format, rows)
            return self._graph.call("S", coefficients, self._bases(form.harmonics), out=out, d=shape)
        rows = list(layer.coefficients.shape)
        stored = self._decoder.numbers(layer.coefficients, form.weight_format, rows)
        width = stored_indices(layer.shape, form)["frequency_support"].bits
        supports = self._decoder.payload.numbers(layer.frequency_support, width)
        harmonics = np.indices(self._kernel).reshape(2, -1).astype(np.float32)
        coefficients = self._graph.call(
            "A", stored, supports, self._graph.constant(harmonics), l=float(self._kernel[1])
        )
        return self._graph.call("S", coefficients, self._bases(self._kernel), out=out, d=shape)

    def _bases(self, harmonics: tuple[int, int]) -> str:
        assert self._form.basis is not None
        basis = self._form.basis
        sampled = [basis_matrix(basis, k, n).float().T.numpy() for k, n in zip(self._kernel, harmonics, strict=True)]
        names = [self._graph.constant(np.ascontiguousarray(phi)) for phi in sampled]
        return self._graph.call("P", *names, d=[harmonics[0] * harmonics[1], self._taps])

    def _order(self) -> str:
        mask = self._layer.template_mask
        assert mask is not None
        return self._graph.call("R", self._decoder.payload.numbers(mask, 1), m=float(self._form.templates or 0))

    def _sources(self) -> str:
        form, layer = self._form, self._layer
        assert form.templates is not None
        if form.assignment is None:
            return self._graph.call("Q", n=layer.shape.out_channels - form.templates, m=form.templates)
        assert layer.template_index is not None
        width = stored_indices(layer.shape, form)["template_index"].bits
        numbers = self._decoder.payload.numbers(layer.template_index, width)
        return self._graph.node("Cast", numbers, to=TensorProto.INT64)

    def _transforms(self, shape: list[int]) -> str:
        assert self._form.transform is not None
        parameters = self._layer.get_parameter(PARAMETERS[self._form.transform])
        shape = [len(parameters), *shape[1:]]
        return self._decoder.numbers(parameters, self._form.weight_format, shape)

    def _operators(self) -> str:
        groups = self._form.groups
        if self._form.transform == "rotation":
            matrices = self._graph.call("D", self._transforms([-1, groups, 1]))
        else:
            matrices = self._transforms([-1, groups, 2, 3])
        axes = [np.arange(k, dtype=np.float32) - np.float32((k - 1) / 2) for k in self._kernel]
        y, x = np.meshgrid(*axes, indexing="ij")
        taps = np.stack([y.ravel(), x.ravel(), np.ones(self._taps, np.float32)])
        names = [self._graph.constant(array) for array in (taps, axes[0][:, None], axes[1][:, None])]
        return self._graph.call("X", matrices, *names, d=[0, 0, self._taps, self._taps])
