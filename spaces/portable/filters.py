"""The filters of a convolution as nodes, step by step as in `layers.filters`; and what replaces them in other graphs.

Each method adds nodes, and returns the value that they give; asked for twice, it is the same value.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
from onnx import TensorProto

from layers import CompressedConv2d
from layers.form import PARAMETERS, stored_indices
from layers.series.sampling import basis_matrix
from spaces.portable.graph import GraphBuilder
from spaces.portable.payload import Payload

__all__ = ["FilterDecoder"]


class FilterDecoder:
    """The parts of one convolution's filters."""

    def __init__(
        self, graph: GraphBuilder, payload: Payload, numbers: Callable[..., str], layer: CompressedConv2d
    ) -> None:
        """Take `numbers` from `spaces.portable.decoders.Decoder`."""
        self._graph = graph
        self._payload = payload
        self._numbers = numbers
        self._layer = layer
        self._form = layer.form
        self._kernel = layer.shape.kernel
        self._taps = self._kernel[0] * self._kernel[1]
        self._shape = list(layer.weight.shape)

    def build(self, out: str) -> None:
        """Give the filters, in the shape of the replaced convolution's weight, as `out`."""
        form, graph = self._form, self._graph
        if form.templates is None:
            self._all_taps(self._shape, out)
        elif form.templates == self._shape[0]:
            graph.reshape(self._templates, self._shape, out)  # tensors of no values are scalars to OpenVINO
        elif form.transform == "zero":
            graph.call("filters_among_zeros", self._templates, self._order, out=out, d=self._shape, m=form.templates)
        elif form.transform == "scalar":
            gains = self._transforms(form.groups, 1, self._taps)
            graph.call("filters_of_gains", self._templates, gains, self._sources, self._order, out=out, d=self._shape)
        else:
            graph.call(
                "filters_of_operators",
                self._templates,
                self._operators,
                self._sources,
                self._order,
                out=out,
                d=self._shape,
            )

    def factored(self) -> list[str]:
        """Give the basis as filters of each channel alone, and the coefficients as filters of one tap."""
        assert self._form.harmonics is not None
        taps, products = self._shape[2:], self._form.harmonics[0] * self._form.harmonics[1]
        basis = self._graph.reshape(self._bases(self._form.harmonics), [products, 1, *taps])
        repeats = self._graph.constant(np.array([self._layer.shape.in_channels, 1, *[1] * len(taps)], np.int64))
        ones = [1] * len(taps)
        mix = self._graph.reshape(self._coefficients, [self._shape[0], self._shape[1] * products, *ones])
        return [self._graph.node("Tile", basis, repeats), mix]

    def pruned(self) -> list[str]:
        """Give the templates as filters, and filters of one tap that put their outputs in place."""
        taps, count = self._shape[2:], self._form.templates
        assert count is not None
        kept = self._graph.reshape(self._templates, [count, *self._shape[1:]])
        places = self._graph.call("placing_filters", self._order, self._graph.constant(np.arange(count)))
        return [kept, self._graph.reshape(places, [self._shape[0], count, *[1] * len(taps)])]

    def two_stage(self) -> list[str]:
        """Give the templates' taps as filters of one tap, each output's maps, and its operators as filters of maps."""
        groups, count, taps = self._form.groups, self._form.templates, self._taps
        assert count is not None
        graph, ones = self._graph, [1] * len(self._shape[2:])
        pointwise = graph.node("Transpose", self._templates, perm=[1, 0, 3, 2])
        pointwise = graph.reshape(pointwise, [groups * count * taps, self._shape[1] // groups, *ones])
        own = graph.constant(np.arange(count))
        source = graph.node("Gather", graph.node("Concat", own, self._sources, axis=0), self._order)
        maps = np.arange(groups)[:, None] * (count * taps) + np.arange(taps)
        places = graph.call("maps_of_filters", source, graph.constant(maps.reshape(1, -1)), t=taps)
        operators, eye = self._operators, graph.constant(np.eye(taps, dtype=np.float32)[None, None])
        identity = graph.node("Expand", eye, graph.constant(np.array([count, groups, taps, taps])))
        both = graph.node("Gather", graph.node("Concat", identity, operators, axis=0), self._order)
        return [pointwise, places, graph.reshape(both, [self._shape[0], groups * taps, *self._shape[2:]])]

    def _all_taps(self, shape: list[int], out: str = "") -> str:
        """Give the taps of all filters, or templates, that are stored."""
        form, layer = self._form, self._layer
        if form.harmonics is None:
            return self._numbers(layer.coefficients, form.weight_format, shape, out)
        harmonics = form.harmonics if form.allocation is None else self._kernel
        coefficients = self._coefficients if form.allocation is None else self._allocated()
        return self._graph.call("filters_of_series", coefficients, self._bases(harmonics), out=out, d=shape)

    @cached_property
    def _coefficients(self) -> str:
        """The coefficients (..., n_y n_x) of a series."""
        assert self._form.harmonics is not None
        products, stored = self._form.harmonics[0] * self._form.harmonics[1], self._layer.coefficients
        return self._numbers(stored, self._form.weight_format, [stored.numel() // products, products])

    def _allocated(self) -> str:
        layer, form = self._layer, self._form
        rows = self._numbers(layer.coefficients, form.weight_format, list(layer.coefficients.shape))
        width = stored_indices(layer.shape, form)["frequency_support"].bits
        supports = self._payload.numbers(layer.frequency_support, width)
        harmonics = self._graph.constant(np.indices(self._kernel).reshape(2, -1).astype(np.float32))
        return self._graph.call("allocated_coefficients", rows, supports, harmonics, l=float(self._kernel[1]))

    def _bases(self, harmonics: tuple[int, int]) -> str:
        """Give the products of both bases (n_y n_x, K_y K_x)."""
        assert self._form.basis is not None
        basis = self._form.basis
        sampled = [basis_matrix(basis, k, n).float().T.numpy() for k, n in zip(self._kernel, harmonics, strict=True)]
        names = [self._graph.constant(phi) for phi in sampled]
        return self._graph.call("products_of_bases", *names, once=True, d=[harmonics[0] * harmonics[1], self._taps])

    @cached_property
    def _templates(self) -> str:
        """The templates (M, G, C / G, T)."""
        groups, count = self._form.groups, self._form.templates
        assert count is not None
        channels = self._layer.shape.filter_channels // groups
        if groups == 1:
            return self._all_taps([count, 1, channels, self._taps])
        base = self._all_taps([groups, count, channels, self._taps])
        return self._graph.node("Transpose", base, perm=[1, 0, 2, 3])

    @cached_property
    def _order(self) -> str:
        """The place (N,) of each filter in the list of the templates, then the others."""
        mask = self._layer.template_mask
        assert mask is not None
        return self._graph.call("order_of_filters", self._payload.numbers(mask, 1), m=float(self._form.templates or 0))

    @cached_property
    def _sources(self) -> str:
        """The template of each other filter (N - M,)."""
        form, layer = self._form, self._layer
        assert form.templates is not None
        if form.assignment is None:
            return self._graph.call("templates_in_turn", n=layer.shape.out_channels - form.templates, m=form.templates)
        assert layer.template_index is not None
        width = stored_indices(layer.shape, form)["template_index"].bits
        return self._payload.numbers(layer.template_index, width, to=TensorProto.INT64)

    def _transforms(self, *shape: int) -> str:
        assert self._form.transform is not None
        parameters = self._layer.get_parameter(PARAMETERS[self._form.transform])
        return self._numbers(parameters, self._form.weight_format, [len(parameters), *shape])

    @cached_property
    def _operators(self) -> str:
        """The operators (N - M, G, T, T) of the other filters, to be multiplied from the right."""
        groups = self._form.groups
        if self._form.transform == "scalar":
            gains = self._transforms(groups, 1, self._taps)
            return self._graph.node("Mul", gains, self._graph.constant(np.eye(self._taps, dtype=np.float32)))
        if self._form.transform == "rotation":
            matrices = self._graph.call("matrices_of_angles", self._transforms(groups, 1))
        else:
            matrices = self._transforms(groups, 2, 3)
        axes = [np.arange(k, dtype=np.float32) - np.float32((k - 1) / 2) for k in self._kernel]
        y, x = np.meshgrid(*axes, indexing="ij")
        taps = np.stack([y.ravel(), x.ravel(), np.ones(self._taps, np.float32)])
        names = [self._graph.constant(array) for array in (taps, axes[0][:, None], axes[1][:, None])]
        return self._graph.call("operators_of_matrices", matrices, *names, d=[0, 0, self._taps, self._taps])
