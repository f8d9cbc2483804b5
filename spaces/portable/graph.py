"""A growing ONNX graph: constants that are held once, nodes and calls of functions, and the tensors of one payload."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from spaces.portable.compact import short_names
from spaces.portable.functions import DOMAIN, function_letter, function_protos

__all__ = ["GraphBuilder"]


class GraphBuilder:
    """What is put in front of a skeleton's nodes."""

    def __init__(self, taken: set[str]) -> None:
        self._names = short_names(taken)
        self._constants: dict[Any, str] = {}
        self._functions: set[str] = set()
        self.initializers: list[onnx.TensorProto] = []
        self.nodes: list[onnx.NodeProto] = []

    def name(self) -> str:
        """Return a name that no value has."""
        return next(self._names)

    def names(self, count: int) -> list[str]:
        """Return as many names that no value has."""
        return [self.name() for _ in range(count)]

    def constant(self, value: npt.NDArray[Any], name: str = "") -> str:
        """Hold an array, under this name or, if there is none, once for all that ask for it; return its name."""
        key = name or (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            self._constants[key] = name or self.name()
            self.initializers.append(numpy_helper.from_array(np.asarray(value, order="C"), self._constants[key]))
        return self._constants[key]

    def call(self, function: str, *inputs: str, out: str = "", once: bool = False, **attributes: Any) -> str:
        """Call one of our functions (`spaces.portable.functions`); return its output, called `out` if that is given.

        With `once` equal calls give one output.
        """
        if once:
            key = (function, inputs, str(attributes))
            if key not in self._constants:
                self._constants[key] = self.call(function, *inputs, **attributes)
            return self._constants[key]
        (output,) = self.calls(function, *inputs, outs=[out or self.name()], **attributes)
        return output

    def calls(self, function: str, *inputs: str, outs: list[str], **attributes: Any) -> list[str]:
        """Call one of our functions with several outputs."""
        self._functions.add(function)
        self.nodes.append(helper.make_node(function_letter(function), inputs, outs, domain=DOMAIN, **attributes))
        return outs

    def node(self, operator: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """Add a node with one output; return the output, called `out` if that is given."""
        out = out or self.name()
        self.nodes.append(helper.make_node(operator, inputs, [out], **attributes))
        return out

    def reshape(self, value: str, shape: list[int], out: str = "") -> str:
        """Add a node that gives a value this shape."""
        return self.node("Reshape", value, self.constant(np.array(shape, np.int64)), out=out)

    def fill(self, model: onnx.ModelProto) -> None:
        """Put all that was added in front of a model's nodes."""
        graph = model.graph
        graph.initializer.extend(self.initializers)
        nodes = [*self.nodes, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
        if self._functions:
            model.functions.extend(function_protos(self._functions, model.opset_import[0].version))
            model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
