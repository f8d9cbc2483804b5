"""Layers in int8 as ONNX: nodes that quantize and dequantize, which runtimes fuse with what stands between them.

Each rounded activation becomes `QuantizeLinear` and `DequantizeLinear` (uint8) behind the node that makes it. A layer's
filters are rounded to int8 in the graph, from the decoded ones, and dequantized with a scale a filter, into which the
norm behind the layer folds; its bias is int32. All of that but the last `DequantizeLinear` is computed when a runtime
loads the file, and then a convolution between the two is its integer kernel. What only moves values (max-pooling,
padding) moves codes.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper
from torch import Tensor, nn

from layers import OvertoneError
from layers.integer.network import IntegerNetwork, int8_layers
from layers.integer.rounding import FILTER_CODES
from layers.quantized import QuantizedLayer
from spaces.portable.graph import GraphBuilder
from spaces.portable.skeleton import Skeleton

__all__ = ["round_activations"]

_Grid = tuple[float, int]
_QUANTIZED_UNASKED = ("Conv", "ConvTranspose", "Gemm")
_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity")


def round_activations(
    builder: GraphBuilder, graph: onnx.GraphProto, skeleton: Skeleton, model: nn.Module, *, codes: int = FILTER_CODES
) -> None:
    """Have a graph, whose weights are decoded, round as an int8 network does; the graph of another stays as it is.

    `codes` is the largest code of a filter: 63 where sums of products of 8 bits would saturate. Raises `OvertoneError`
    if the graph lacks a layer or tensor that is rounded.
    """
    layers = int8_layers(model)
    if layers and not isinstance(model, IntegerNetwork):
        raise OvertoneError(f"cannot write layer {next(iter(layers))!r} in int8: its activations have no scale yet")
    if isinstance(model, IntegerNetwork):
        _Writer(builder, graph, codes).write(skeleton, model, layers)


class _Writer:
    def __init__(self, builder: GraphBuilder, graph: onnx.GraphProto, codes: int) -> None:
        self._builder = builder
        self._nodes = list(graph.node)
        self._graph = graph
        self._most = codes
        self._codes: dict[str, tuple[str, _Grid]] = {}
        """Dequantized value -> its codes, and their grid."""

    def write(self, skeleton: Skeleton, model: IntegerNetwork, layers: dict[str, QuantizedLayer]) -> None:
        nodes = {name: self._calls(skeleton, name) for name in layers}
        for call, row in model.rounding_plan.grids.items():
            if call not in skeleton.marks:
                raise OvertoneError(f"cannot find the tensor of call {call}, which is rounded, in the network's graph")
            self._round(skeleton.marks[call], _plain(model.activation_grids[row]))
        for name, layer in layers.items():
            for node in nodes[name]:
                self._layer(layer, node)
        self._guard_floats([node for found in nodes.values() for node in found])
        self._drop_unread()
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)

    def _calls(self, skeleton: Skeleton, name: str) -> list[onnx.NodeProto]:
        """Return the nodes that convolve or multiply with a layer's filters."""
        if not skeleton.calls.get(name):
            raise OvertoneError(f"cannot find where the network runs its layer {name!r}, which computes in int8")
        return [self._maker(output) for output in skeleton.calls[name]]

    def _round(self, value: str, grid: _Grid) -> None:
        """Round a value for all that read it."""
        rounded = self._builder.name()
        if any(output.name == value for output in self._graph.output):
            self._make_output(value)
            value = self._renamed
        self._read(value, rounded)
        if not self._move_codes(value, rounded, grid):
            place = self._drop_bound(value, grid) + 1
            self._nodes[place:place] = self._pair(value, rounded, grid)

    def _make_output(self, value: str) -> None:
        """Give the network's output a node of its own, so that what makes its values has a name that is free."""
        self._renamed = self._builder.name()
        maker = self._maker(value)
        maker.output[:] = [self._renamed if name == value else name for name in maker.output]
        self._read(value, self._renamed)
        self._nodes.append(helper.make_node("Identity", [self._renamed], [value]))

    def _pair(self, value: str, rounded: str, grid: _Grid) -> list[onnx.NodeProto]:
        codes = self._builder.name()
        self._codes[rounded] = codes, grid
        return [helper.make_node("QuantizeLinear", [value, *self._constants(grid)], [codes]), self._decoded(rounded)]

    def _decoded(self, rounded: str) -> onnx.NodeProto:
        codes, grid = self._codes[rounded]
        return helper.make_node("DequantizeLinear", [codes, *self._constants(grid)], [rounded])

    def _constants(self, grid: _Grid) -> list[str]:
        scale, zero = np.array(grid[0], np.float32), np.array(grid[1], np.uint8)
        return [self._builder.constant(scale), self._builder.constant(zero)]

    def _move_codes(self, value: str, rounded: str, grid: _Grid) -> bool:
        """Have the node that makes a value move codes if it moves values of the same grid; return whether it does."""
        node = self._maker(value)
        codes, found = self._codes.get(node.input[0], ("", None))
        if found != grid or node.op_type not in ("MaxPool", "Pad", "AveragePool"):
            return False
        zero = self._constants(grid)[1]
        given = [codes, node.input[1], zero, *node.input[3:]] if node.op_type == "Pad" else [codes]
        if node.op_type == "AveragePool":  # of single values
            node.op_type = "MaxPool"
            kept = [attribute for attribute in node.attribute if attribute.name != "count_include_pad"]
            del node.attribute[:]
            node.attribute.extend(kept)
        node.input[:] = given
        self._codes[rounded] = value, grid
        self._nodes.insert(self._nodes.index(node) + 1, self._decoded(rounded))
        return True

    def _drop_bound(self, value: str, grid: _Grid) -> int:
        """Leave out a ReLU whose bounds the codes have too; return the place of the node that makes the value."""
        node = self._maker(value)
        place = self._nodes.index(node)
        source = node.input[0] if node.input else ""
        bounded = node.op_type == "Relu" and grid[1] == 0
        if not bounded or len(self._readers(source)) != 1 or not any(source in maker.output for maker in self._nodes):
            return place
        maker = self._maker(source)
        maker.output[:] = [value if name == source else name for name in maker.output]
        self._nodes.remove(node)
        return self._nodes.index(maker)

    def _layer(self, layer: QuantizedLayer, node: onnx.NodeProto) -> None:
        grid = _plain(layer.get_buffer("input_grid"))
        factor, shift = self._folded(node)
        if self._grid_of(node.input[0]) != grid:
            rounded, place = self._builder.name(), self._nodes.index(node)
            self._nodes[place:place] = self._pair(node.input[0], rounded, grid)
            node.input[0] = rounded
        reader, place = self._weight(node)
        scale = self._builder.constant(np.array(grid[0], np.float32))
        most = self._builder.constant(np.array(self._most, np.float32))
        given = [factor or self._builder.constant(np.ones(1, np.float32))]
        given += [shift or self._builder.constant(np.zeros(1, np.float32)), scale, most]
        filters, bias = self._builder.calls(
            "int8_filters_and_bias", reader.input[place], *given, outs=self._builder.names(2)
        )
        reader.input[place] = filters
        if shift:
            node.input[2:] = [bias]

    def _guard_floats(self, integer: list[onnx.NodeProto]) -> None:
        """Keep layers in float that stand between rounded tensors.

        ONNX Runtime would take them for layers whose weights someone forgot to quantize, and round those
        (`WeightBiasQuantization`), but not behind a bound, here one that no code is beyond.
        """
        for node in [node for node in self._nodes if node.op_type in _QUANTIZED_UNASKED and node not in integer]:
            grid = self._grid_of(node.input[0])
            if grid is not None:
                bounded, lowest = self._builder.name(), np.array(-grid[0] * grid[1], np.float32)
                clip = helper.make_node("Clip", [node.input[0], self._builder.constant(lowest)], [bounded])
                self._nodes.insert(self._nodes.index(node), clip)
                node.input[0] = bounded

    def _weight(self, node: onnx.NodeProto) -> tuple[onnx.NodeProto, int]:
        """Return the node that reads a layer's weight, and its input's number: the layer's, or one that transposes."""
        makers = [maker for maker in self._nodes if node.input[1] in maker.output]
        return (makers[0], 0) if makers and makers[0].op_type == "Transpose" else (node, 1)

    def _folded(self, node: onnx.NodeProto) -> tuple[str, str]:
        """Return factor and shift of a layer's outputs, "" if there are none; a norm that follows alone is left out."""
        bias = node.input[2] if len(node.input) > 2 else ""
        readers = self._readers(node.output[0])
        if node.op_type != "Conv" or len(readers) != 1 or readers[0].op_type != "BatchNormalization":
            return "", bias
        norm = readers[0]
        epsilon = next((attribute.f for attribute in norm.attribute if attribute.name == "epsilon"), 1e-5)
        given = [*norm.input[1:5], self._builder.constant(np.array(epsilon, np.float32)), *([bias] if bias else [])]
        self._nodes.remove(norm)
        node.output[0] = norm.output[0]
        function = "folded_norm_behind_bias" if bias else "folded_norm"
        factor, shift = self._builder.calls(function, *given, outs=self._builder.names(2))
        return factor, shift

    def _grid_of(self, value: str) -> _Grid | None:
        """Return the grid that a value is on, if its node or one behind views of it says so."""
        while value not in self._codes:
            makers = [node for node in self._nodes if value in node.output]
            if not makers or makers[0].op_type not in _VIEWS:
                return None
            value = makers[0].input[0]
        return self._codes[value][1]

    def _drop_unread(self) -> None:
        self._nodes = [n for n in self._nodes if n.op_type != "DequantizeLinear" or self._readers(n.output[0])]

    def _maker(self, value: str) -> onnx.NodeProto:
        return next(node for node in self._nodes if value in node.output)

    def _readers(self, value: str) -> list[onnx.NodeProto]:
        return [node for node in self._nodes if value in node.input]

    def _read(self, value: str, other: str) -> None:
        """Have all that read a value read another."""
        for node in self._readers(value):
            node.input[:] = [other if name == value else name for name in node.input]


def _plain(grid: Tensor) -> _Grid:
    return float(grid[0]), int(grid[1])
