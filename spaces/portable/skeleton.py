"""The ONNX graph of an uncompressed network, without its weights: made once, filled by every compressed copy of it.

The exporter gives a graph in which weights stand under their names in the state dict. They are made inputs of the graph
before it is optimized, so that nothing is computed of their values: norms stay as they are, and what the exporter would
fold into weights stays a node. What is left are nodes and a few constants; names are as short as can be.
"""

from __future__ import annotations

import ast
import copy
import gc
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from layers.form import is_norm
from layers.integer.network import mark_calls
from layers.integer.rounding import FILTER_CODES
from layers.plainness import kept_because

if TYPE_CHECKING:
    import onnx
    import onnx_ir

    from spaces.portable.executions import GraphExecution

__all__ = ["INPUT", "IR_VERSION", "OPSET", "OUTPUT", "PAYLOAD", "Skeleton", "make_skeleton"]

INPUT, OUTPUT, PAYLOAD = "images", "logits", "p"
OPSET = 18
"""The operator set that the exporter writes without conversion; circular padding is an operator of the next."""
IR_VERSION = 8
"""The first version of the file format that holds functions of a model's own."""


@dataclass(frozen=True)
class Skeleton:
    """The graph of a network for batches of images of one size; plain data, which can be pickled."""

    graph: bytes
    """A `ModelProto`. The tensors of the state dict that it reads are its inputs, after the images."""
    state: Mapping[str, str]
    """Name in the state dict -> value of the graph; a tensor with two names has both."""
    calls: Mapping[str, tuple[str, ...]]
    """Layer -> outputs of the nodes that convolve or multiply with its weight when the network calls it."""
    marks: Mapping[int, str]
    """Number of a counted call of the network (`layers.integer.calls`) -> value of the graph that it gives."""
    shapes: Mapping[str, tuple[int, ...]]
    """Such an output -> shape of one image's input, where the network says it."""

    def proto(self) -> onnx.ModelProto:
        """Return a copy of the graph."""
        import onnx

        return onnx.ModelProto.FromString(self.graph)

    def file(
        self,
        model: nn.Module,
        *,
        executions: Mapping[str, GraphExecution] | None = None,
        inline: bool = False,
        dense: bool = False,
        filter_codes: int = FILTER_CODES,
        openvino: bool = False,
    ) -> bytes:
        """Return the ONNX file of a compressed copy of the network (`spaces.portable.onnx_file`).

        `executions` are those of `choose_executions`; without them all layers convolve with their filters.
        """
        from spaces.portable.onnx_file import onnx_file

        ways: Any = {"inline": inline, "dense": dense, "filter_codes": filter_codes, "openvino": openvino}
        proto = onnx_file(self, model, executions=executions or {}, **ways)
        return proto.SerializeToString()


def make_skeleton(network: nn.Module, image: tuple[int, int, int], *, marked: bool = True) -> Skeleton:
    """Trace an uncompressed network, which stays as it is, for (channels, height, width) images in batches of any size.

    Without marks, which take a third of the time, no copy may round activations (`int8_layers`). Takes what
    `torch.onnx.export` takes, and raises what that raises.
    """
    import onnx_ir as ir

    from spaces.portable.compact import rename_values, strip

    network = _untied(network)
    names = _state_names(network)
    if marked:
        mark_calls(network, _mark)
    model = _exported(network, image)
    state = _free_state(model, names)
    _optimize(model)
    marks = _take_marks(model.graph)
    calls, shapes = _calls(model.graph, state), _input_shapes(model.graph)
    proto = ir.to_proto(model)
    proto.ir_version, proto.opset_import[0].version = IR_VERSION, OPSET + _has_circular_padding(model.graph)
    strip(proto)
    short = rename_values(proto, keep=(INPUT, OUTPUT, PAYLOAD))
    return Skeleton(
        graph=proto.SerializeToString(deterministic=True),
        state={name: short[value] for value, all_names in state.items() for name in all_names if value in short},
        marks={number: short[value] for number, value in marks.items() if value in short},
        calls={layer: tuple(short[output] for output in outputs) for layer, outputs in calls.items()},
        shapes={short[output]: shapes[output] for outputs in calls.values() for output in outputs if output in shapes},
    )


def _untied(network: nn.Module) -> nn.Module:
    """Return a copy on the CPU in which no layer that can be compressed shares a tensor: forms may tell them apart."""
    network = copy.deepcopy(network).cpu().eval()
    for module in network.modules():
        if (isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear) or is_norm(module)) and not kept_because(module):
            for table in (module._parameters, module._buffers):
                table.update({name: _clone(value) for name, value in table.items() if value is not None})
    return network


def _clone(tensor: Any) -> Any:
    cloned = tensor.detach().clone()
    return nn.Parameter(cloned, requires_grad=False) if isinstance(tensor, nn.Parameter) else cloned


def _state_names(network: nn.Module) -> dict[str, list[str]]:
    """Return all names of the tensor that has a name in the state dict."""
    same: dict[int, list[str]] = {}
    state = network.state_dict(keep_vars=True)
    for name, tensor in state.items():
        same.setdefault(id(tensor), []).append(name)
    return {name: same[id(tensor)] for name, tensor in state.items()}


def _exported(network: nn.Module, image: tuple[int, int, int]) -> onnx_ir.Model:
    with warnings.catch_warnings(), torch.no_grad(), _no_collection():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (torch.zeros(2, *image),),  # two, because an exporter takes a batch of one for a constant
            dynamo=True,
            verbose=False,
            optimize=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
        )
    assert program is not None
    return program.model


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect no garbage: exporters make millions of objects, among which there is little, and a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


_MARK = "overtone.marks::Mark"


def _mark(x: Tensor, number: int) -> Tensor:
    """Mark the output of a counted call with a node of its own."""
    marked: Tensor = torch.onnx.ops.symbolic(_MARK, (x,), {"number": number}, dtype=x.dtype, shape=x.shape, version=1)
    return marked


def _take_marks(graph: onnx_ir.Graph) -> dict[int, str]:
    """Take out the nodes that mark calls; return the value that each marks, by the call's number."""
    marks = {}
    for node in list(graph):
        if f"{node.domain}::{node.op_type}" != _MARK:
            continue
        value, marked = node.inputs[0], node.outputs[0]
        assert value is not None
        marks[node.attributes["number"].as_int()] = value
        if marked in graph.outputs:
            graph.outputs[list(graph.outputs).index(marked)] = value
            value.name, marked.name = marked.name, value.name
        marked.replace_all_uses_with(value)
        graph.remove(node)
    return {number: str(value.name) for number, value in marks.items()}


def _free_state(model: onnx_ir.Model, names: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Make the tensors of the state dict inputs without values; return their names by value."""
    state = {}
    for name, value in list(model.graph.initializers.items()):
        if name in names:
            del model.graph.initializers[name]
            value.const_value = None
            model.graph.inputs.append(value)
            state[name] = names[name]
    return state


def _optimize(model: onnx_ir.Model) -> None:
    from onnxscript.optimizer import optimize_ir

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimize_ir(model)


def _input_shapes(graph: onnx_ir.Graph) -> dict[str, tuple[int, ...]]:
    """Return the known shapes of nodes' first inputs, without the batch, by the names of their first outputs."""
    shapes = {}
    for node in graph:
        shape = node.inputs[0].shape if node.inputs and node.inputs[0] is not None else None
        if shape is not None and all(isinstance(size, int) for size in shape[1:]):
            shapes[str(node.outputs[0].name)] = tuple(int(str(size)) for size in shape[1:])
    return shapes


def _has_circular_padding(graph: onnx_ir.Graph) -> bool:
    return any(node.op_type == "Pad" and node.attributes.get_string("mode", "") == "wrap" for node in graph.all_nodes())


_SCOPES = "pkg.torch.onnx.name_scopes"


def _calls(graph: onnx_ir.Graph, state: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return the outputs of the nodes that multiply with each layer's weight.

    If some do so within the layer's own forward pass, others are code that reads the weight, and left out.
    """
    own: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}
    for node in graph:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        weight = node.inputs[1]
        producer = None if weight is None else weight.producer()
        if producer is not None and producer.op_type == "Transpose":
            weight = producer.inputs[0]
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        for name in state.get(str(weight and weight.name), ()):
            layer, _, parameter = name.rpartition(".")
            if parameter == "weight":
                (own if layer in scopes else others).setdefault(layer, []).append(str(node.outputs[0].name))
    return others | own
