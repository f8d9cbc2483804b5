"""The fastest graph of each layer in its runtime, found by timing graphs of one layer.

A layer runs in two stages (`spaces.portable.executions`) if that takes at most 0.9 of the time of its convolution with
its filters for one image, and no more for 64; else with its filters. Both are timed by turns, in graphs of one layer of
random numbers, with the norm and the rectifier that usually follow, once a process for layers of one geometry. Of one
thread it is the processor's time, which other processes do not change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from layers import CompressedConv2d, compressed_layers
from spaces.portable.compact import short_names
from spaces.portable.executions import GraphExecution, graph_execution, stages, weight_shapes
from spaces.portable.skeleton import IR_VERSION, OPSET, Skeleton

__all__ = ["Runtime", "choose_executions"]

_GAIN = {1: 0.9, 64: 1.0}
"""Batch size -> most time of another graph, as a share of that of the convolution."""
_LEAST_ROUNDS, _MOST_ROUNDS, _BUDGET_S = 3, 15, 0.1
_chosen: dict[Any, bool] = {}
"""Whether layers of a geometry run in two stages, for the rest of the process."""


@dataclass(frozen=True)
class Runtime:
    """Where a file is to run."""

    name: Literal["onnxruntime", "openvino"] = "onnxruntime"
    threads: int = 1

    def open(self, model: bytes) -> Callable[[npt.NDArray[Any]], Any]:
        """Return what runs a model for an input."""
        return (
            _open_onnxruntime(model, self.threads)
            if self.name == "onnxruntime"
            else _open_openvino(model, self.threads)
        )


def choose_executions(skeleton: Skeleton, model: nn.Module, runtime: Runtime = Runtime()) -> dict[str, GraphExecution]:
    """Return the layers of a compressed copy of the skeleton's network that run faster in two stages, and how."""
    nodes = {node.output[0]: node for node in skeleton.proto().graph.node}
    chosen = {}
    for name, layer in compressed_layers(model).items():
        execution, outputs = graph_execution(layer), skeleton.calls.get(name, ())
        if execution is None or not outputs or any(output not in skeleton.shapes for output in outputs):
            continue
        assert isinstance(layer, CompressedConv2d)
        calls = [(nodes[output], skeleton.shapes[output]) for output in outputs]
        if all(_is_faster(layer, execution, node, shape, runtime) for node, shape in calls):
            chosen[name] = execution
    return chosen


def _is_faster(
    layer: CompressedConv2d, execution: GraphExecution, node: onnx.NodeProto, shape: tuple[int, ...], runtime: Runtime
) -> bool:
    attributes = tuple(attribute.SerializeToString() for attribute in node.attribute)
    shapes = tuple(map(tuple, weight_shapes(layer, execution)))
    key = (execution, tuple(layer.weight.shape), shapes, attributes, shape, runtime)
    if key not in _chosen:
        runs = [runtime.open(_one_layer(layer, how, node, shape)) for how in (None, execution)]
        clock = time.process_time if runtime.threads == 1 else time.perf_counter
        _chosen[key] = all(_ratio(runs, (batch, *shape), clock) <= gain for batch, gain in _GAIN.items())
    return _chosen[key]


def _ratio(
    runs: Sequence[Callable[[npt.NDArray[Any]], Any]], shape: tuple[int, ...], clock: Callable[[], float]
) -> float:
    """Return the time of the second as a share of the first's, the median over rounds in which both take turns."""
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    ratios: list[float] = []
    start = time.perf_counter()
    for run in runs:
        run(images)
    while len(ratios) < _LEAST_ROUNDS or (len(ratios) < _MOST_ROUNDS and time.perf_counter() - start < _BUDGET_S):
        first, second = (_seconds(run, images, clock) for run in runs)
        ratios.append(second / first)
    return median(ratios)


def _seconds(run: Callable[[npt.NDArray[Any]], Any], images: npt.NDArray[Any], clock: Callable[[], float]) -> float:
    start = clock()
    run(images)
    return clock() - start


def _one_layer(
    layer: CompressedConv2d, execution: GraphExecution | None, node: onnx.NodeProto, shape: tuple[int, ...]
) -> bytes:
    """Return a model of one layer with random numbers."""
    rng = np.random.default_rng(0)
    shapes: Sequence[Sequence[int]] = [layer.weight.shape] if execution is None else weight_shapes(layer, execution)
    weights: list[npt.NDArray[Any]] = [rng.standard_normal(tuple(size), np.float32) for size in shapes]
    if execution == "two_stage":
        weights[1] = rng.integers(0, shapes[0][0], tuple(shapes[1]))
    names = [f"w{i}" for i in range(len(weights))]
    conv = onnx.NodeProto.FromString(node.SerializeToString())
    conv.input[:], conv.output[:] = ["x", names[0]], ["c"]
    fresh = short_names({"x", "y", "c", "n", *names})
    nodes = [conv] if execution is None else stages(conv, layer, execution, names, lambda: next(fresh))
    nodes.append(helper.make_node("BatchNormalization", ["c", *["v"] * 4], ["n"]))
    nodes.append(helper.make_node("Relu", ["n"], ["y"]))
    values: Mapping[str, npt.NDArray[Any]] = {
        **dict(zip(names, weights, strict=True)),
        "v": np.ones(len(layer.weight), np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    ).SerializeToString()


def _open_onnxruntime(model: bytes, threads: int) -> Callable[[npt.NDArray[Any]], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"x": images})


def _open_openvino(model: bytes, threads: int) -> Callable[[npt.NDArray[Any]], Any]:
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()
    return lambda images: request.infer([images])
