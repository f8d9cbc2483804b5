"""Small files of the kinds that are timed."""

from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

__all__ = ["write_onnx", "write_pt2"]

IMAGE = ("n", 3, 6, 6)


def write_onnx(
    path: Path,
    shapes: Sequence[Sequence[int | str]] = (IMAGE,),
    *,
    type: int = TensorProto.FLOAT,
    function: bool = False,
) -> Path:
    """The largest of each value and 0, by an operator or by a function of the file."""
    names = [f"x{index}" for index in range(len(shapes))]
    inputs = [helper.make_tensor_value_info(name, type, shape) for name, shape in zip(names, shapes, strict=True)]
    output = helper.make_tensor_value_info("y", type, None)
    node = helper.make_node("Max", names, ["y"]) if len(names) > 1 else helper.make_node("Abs", names, ["y"])
    opsets, functions = [helper.make_opsetid("", 18)], []
    if function:
        node = helper.make_node("Positive", names, ["y"], domain="own")
        body = helper.make_node("Abs", ["a"], ["b"])
        functions = [helper.make_function("own", "Positive", ["a"], ["b"], [body], opsets)]
        opsets = [*opsets, helper.make_opsetid("own", 1)]
    graph = helper.make_graph([node], "graph", inputs, [output])
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9), path)
    return path


def write_pt2(path: Path, network: nn.Module, *inputs: torch.Tensor, free: bool = True) -> Path:
    shapes = tuple({0: torch.export.Dim("batch")} for _ in inputs) if free else None
    torch.export.save(torch.export.export(network, inputs, dynamic_shapes=shapes), path)
    return path
