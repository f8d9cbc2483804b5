"""ONNX models without what no runtime reads: stack traces, names for people, types between nodes, default attributes."""

from __future__ import annotations

import itertools
import string
from collections.abc import Collection, Iterator

import onnx

__all__ = ["rename_values", "short_names", "strip"]

_ONES = ("strides", "dilations")
_NO_EFFECT = {"BatchNormalization": ("momentum",)}
"""Attributes that matter in training alone."""


def strip(model: onnx.ModelProto) -> None:
    """Drop metadata, texts, names of nodes, types of values between nodes, and attributes that say the default."""
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    model.ClearField("metadata_props")
    model.ClearField("doc_string")
    model.ClearField("producer_version")
    model.producer_name = "overtone"
    for graph in _graphs(model.graph):
        graph.name = "g"
        graph.ClearField("doc_string")
        graph.ClearField("metadata_props")
        graph.ClearField("value_info")
        for value in (*graph.input, *graph.output, *graph.initializer):
            value.ClearField("doc_string")
            value.ClearField("metadata_props")
        for node in graph.node:
            node.ClearField("name")
            node.ClearField("doc_string")
            node.ClearField("metadata_props")
            _drop_defaults(node, opset)


def rename_values(model: onnx.ModelProto, keep: Collection[str]) -> dict[str, str]:
    """Give all values but those in `keep` the shortest names there are; return the new name of each value."""
    short = short_names(keep)
    renamed = {"": "", **{name: name for name in keep}}
    graphs = list(_graphs(model.graph))
    for graph in graphs:
        values = [value.name for value in (*graph.input, *graph.initializer)]
        values += [output for node in graph.node for output in node.output]
        for name in values:
            if name not in renamed:
                renamed[name] = next(short)
    for graph in graphs:
        for value in (*graph.input, *graph.initializer, *graph.output):
            value.name = renamed[value.name]
        for node in graph.node:
            node.input[:] = [renamed[name] for name in node.input]
            node.output[:] = [renamed[name] for name in node.output]
    return renamed


def short_names(taken: Collection[str]) -> Iterator[str]:
    """Yield names of one letter, then of two, and so on, none of which is taken."""
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_letters, repeat=length):
            if (name := "".join(letters)) not in taken:
                yield name


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _drop_defaults(node: onnx.NodeProto, opset: int) -> None:
    kept = [attribute for attribute in node.attribute if not _is_default(node, attribute, opset)]
    del node.attribute[:]
    node.attribute.extend(kept)


def _is_default(node: onnx.NodeProto, attribute: onnx.AttributeProto, opset: int) -> bool:
    """Return whether a node means the same without this attribute."""
    attribute.ClearField("doc_string")
    if node.op_type in ("Conv", "MaxPool", "AveragePool", "LpPool") and attribute.name in (*_ONES, "pads"):
        return set(attribute.ints) == {0 if attribute.name == "pads" else 1}
    if attribute.name in _NO_EFFECT.get(node.op_type, ()):
        return True
    if node.domain or not onnx.defs.has(node.op_type, opset):
        return False
    known = onnx.defs.get_schema(node.op_type, opset).attributes
    default = known[attribute.name].default_value if attribute.name in known else onnx.AttributeProto()
    return bool(default.name) and default.SerializeToString() == attribute.SerializeToString()
