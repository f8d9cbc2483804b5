"""The graphs in which a compressed convolution can run in another runtime; they compute the same.

A layer convolves with its filters, which the runtime builds when it loads the file, or in two stages, as in
`layers.execution`: `factored` (a series) convolves each channel with the basis functions, and mixes; `pruned` (filters
that are zero beside templates) convolves with the templates, and puts their outputs in place; `two_stage` (templates)
makes maps of the templates' taps, and convolves each output's maps with its operators. Coefficients of each filter's
own have no such graph: they need all basis functions, which costs more than the filters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Literal

import onnx
from onnx import helper

from layers import CompressedConv2d
from layers.compress import CompressedLayer

__all__ = ["GraphExecution", "graph_execution", "replace_calls", "stages", "weight_shapes"]

GraphExecution = Literal["factored", "pruned", "two_stage"]

_SPATIAL = ("auto_pad", "dilations", "kernel_shape", "pads", "strides")
"""Attributes that belong to the stage that sees several pixels."""


def graph_execution(layer: CompressedLayer) -> GraphExecution | None:
    """Return how a layer can run but by convolving with its filters, `None` if there is no other way."""
    if not isinstance(layer, CompressedConv2d) or layer.form.arithmetic != "float":
        return None
    form = layer.form
    if form.templates is None:
        return "factored" if form.basis is not None and form.allocation is None else None
    if layer.shape.groups > 1 or form.templates == layer.shape.out_channels:
        return None
    return "pruned" if form.transform == "zero" else "two_stage"


def weight_shapes(layer: CompressedConv2d, execution: GraphExecution) -> list[list[int]]:
    """Return the shapes of the weights that `FilterDecoder` gives for a graph."""
    filters, channels, *taps = layer.weight.shape
    ones, count, form = [1] * len(taps), prod(taps), layer.form
    if execution == "factored":
        products = prod(form.harmonics or ())
        return [[layer.shape.in_channels * products, 1, *taps], [filters, channels * products, *ones]]
    templates, groups = form.templates or 0, form.groups
    if execution == "pruned":
        return [[templates, channels, *taps], [filters, templates, *ones]]
    maps = filters * groups * count
    return [[groups * templates * count, channels // groups, *ones], [maps], [filters, groups * count, *taps]]


def replace_calls(
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[str],
    layer: CompressedConv2d,
    execution: GraphExecution,
    weights: Sequence[str],
    name: Callable[[], str],
) -> list[onnx.NodeProto]:
    """Return nodes in which a layer's convolutions, which have these outputs, are in two stages.

    The weights are those of `FilterDecoder`; `name` gives new names.
    """
    result: list[onnx.NodeProto] = []
    for node in nodes:
        is_call = node.output[0] in outputs
        result.extend(stages(node, layer, execution, weights, name) if is_call else [node])
    return result


def stages(
    conv: onnx.NodeProto,
    layer: CompressedConv2d,
    execution: GraphExecution,
    weights: Sequence[str],
    name: Callable[[], str],
) -> list[onnx.NodeProto]:
    """Return the nodes of a layer's convolution in two stages."""
    spatial = {a.name: helper.get_attribute_value(a) for a in conv.attribute if a.name in _SPATIAL}
    point = {"kernel_shape": [1] * (layer.weight.dim() - 2)}
    value, (output,), bias = conv.input[0], conv.output, list(conv.input[2:])
    firsts: dict[str, Any]
    seconds: dict[str, Any]
    if execution == "factored":
        firsts, seconds = {**spatial, **_grouped(layer.shape.in_channels)}, {**point, **_grouped(layer.shape.groups)}
    elif execution == "pruned":
        firsts, seconds = spatial, point
    else:
        firsts, seconds = {**point, **_grouped(layer.form.groups)}, {**spatial, **_grouped(layer.shape.out_channels)}
    inner = name()
    result = [helper.make_node("Conv", [value, weights[0]], [inner], **firsts)]
    if execution == "two_stage":
        result.append(helper.make_node("Gather", [inner, weights[1]], [inner := name()], axis=1))
    return [*result, helper.make_node("Conv", [inner, weights[-1], *bias], [output], **seconds)]


def _grouped(groups: int) -> dict[str, int]:
    return {} if groups == 1 else {"group": groups}
