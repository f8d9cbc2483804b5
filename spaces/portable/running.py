"""What the nodes of a compressed layer do beside multiplying with its filters when the network runs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx

from layers import CompressedNorm, OvertoneError
from layers.blockfloat.format import BlockFormat
from layers.compress import CompressedLayer
from spaces.portable.graph import GraphBuilder

__all__ = ["round_inputs"]


def round_inputs(
    graph: GraphBuilder,
    nodes: list[onnx.NodeProto],
    layers: Mapping[str, CompressedLayer],
    calls: Mapping[str, tuple[str, ...]],
) -> list[onnx.NodeProto]:
    """Return a network's nodes with the inputs of layers rounded whose forms say so.

    `calls` are the outputs of the nodes that are each layer's. Raises `OvertoneError` if a layer has none.
    """
    rounding: dict[str, tuple[BlockFormat, int]] = {}
    for name, layer in layers.items():
        form = None if isinstance(layer, CompressedNorm) else layer.form.activation_format
        if form is not None:
            if not calls.get(name):
                raise OvertoneError(f"cannot find where the network runs its layer {name!r}, whose input is rounded")
            rounding.update(dict.fromkeys(calls[name], (form, layer.shape.in_channels)))
    rounded: dict[tuple[str, BlockFormat, bool], str] = {}
    front, graph.nodes = graph.nodes, []
    for node in nodes:
        if node.output[0] in rounding:
            form, channels = rounding[node.output[0]]
            key = node.input[0], form, node.op_type == "Conv"
            if key not in rounded:
                rounded[key] = _rounded(graph, node.input[0], form, channels, beside=node.op_type == "Conv")
            node.input[0] = rounded[key]
        graph.nodes.append(node)
    result, graph.nodes = graph.nodes, front
    return result


def _rounded(graph: GraphBuilder, value: str, form: BlockFormat, channels: int, *, beside: bool) -> str:
    """Add the call that rounds a value, whose channels have pixels `beside` each other, or come last."""
    reach = form.bits - form.lowest
    powers = graph.constant(np.exp2(np.arange(-reach, reach + 1)).astype(np.float32))
    highest = -form.lowest - 1
    numbers = [form.lowest, highest, 2.0**form.lowest, 2.0**highest, form.bits - 1, 2.0**form.bits, reach]
    constants = graph.constant(np.array([*numbers, 2.0**-form.lowest, 1 / math.log(2)], np.float32))
    if form.block == 1:
        return graph.call("rounded_values", value, powers, constants)
    blocks = -(-channels // form.block)
    return graph.call(
        "rounded_channels",
        *(value, powers, constants),
        d=[0, channels, -1] if beside else [-1, channels, 1],
        n=[0, 0, 0, 0, blocks * form.block - channels, 0],
        c=[0, blocks, form.block, -1],
    )
