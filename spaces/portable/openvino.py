"""What OpenVINO needs of a graph in int8 to round where the network rounds.

Its CPU plugin fuses a convolution, the rounding of its output, an addition and the rounding of the sum into one kernel,
whose results are those without the first of the two roundings (2026.4; `benchmarks/int8_speed.py` counts the images).
It does so where nothing stands between convolution and rounding. A bound there is fused away too; a leaky rectifier
whose slope is 1, which changes no value, is not.
"""

from __future__ import annotations

import onnx
from onnx import helper

from spaces.portable.graph import GraphBuilder

__all__ = ["keep_rounding"]


def keep_rounding(builder: GraphBuilder, graph: onnx.GraphProto) -> None:
    """Have OpenVINO round what convolutions give to additions, in place."""
    makers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    nodes = []
    for node in graph.node:
        given = makers.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        if given is not None and given.op_type == "Conv" and _is_added(node, readers):
            same = builder.name()
            nodes.append(helper.make_node("LeakyRelu", [node.input[0]], [same], alpha=1.0))
            node.input[0] = same
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _is_added(node: onnx.NodeProto, readers: dict[str, list[onnx.NodeProto]]) -> bool:
    """Return whether what a node gives is dequantized and then added, and nothing else."""
    dequantized = [reader.output[0] for reader in readers.get(node.output[0], [])]
    return {reader.op_type for value in dequantized for reader in readers.get(value, [])} == {"Add"}
