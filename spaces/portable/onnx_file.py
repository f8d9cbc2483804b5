"""The ONNX file of a compressed network: its skeleton, its packed tensors, and what decodes them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import torch
from torch import nn

from layers import CompressedConv2d, CompressedNorm, compressed_layers
from layers.integer.rounding import FILTER_CODES
from spaces.portable.compact import rename_values, strip
from spaces.portable.decoders import Decoder
from spaces.portable.executions import GraphExecution, replace_calls
from spaces.portable.graph import GraphBuilder
from spaces.portable.integer import round_activations
from spaces.portable.openvino import keep_rounding
from spaces.portable.payload import Payload
from spaces.portable.running import round_inputs
from spaces.portable.skeleton import INPUT, OUTPUT, PAYLOAD, Skeleton

__all__ = ["onnx_file"]


def onnx_file(
    skeleton: Skeleton,
    model: nn.Module,
    *,
    executions: Mapping[str, GraphExecution],
    inline: bool = False,
    dense: bool = False,
    filter_codes: int = FILTER_CODES,
    openvino: bool = False,
) -> onnx.ModelProto:
    """Return a compressed copy, in evaluation mode, of the skeleton's network as ONNX.

    Layers run as `executions` say, all others convolve with their filters. With `inline` there are no functions; with
    `dense` filters are float32, norms are folded into them, and `executions` do not count. With `openvino` that rounds
    what it would not. The largest code of filters in int8 is `filter_codes`.
    """
    proto = skeleton.proto()
    graph = proto.graph
    names = {value.name for value in (*graph.input, *graph.initializer)}
    names |= {output for node in graph.node for output in node.output}
    del graph.input[1:]
    builder = GraphBuilder({INPUT, OUTPUT, PAYLOAD} | names)
    nodes = round_inputs(builder, list(graph.node), compressed_layers(model), skeleton.calls)
    if dense:
        _fill_dense(builder, skeleton.state, model)
    else:
        nodes = _fill(builder, skeleton, model, nodes, executions)
    del graph.node[:]
    graph.node.extend(nodes)
    round_activations(builder, graph, skeleton, model, codes=filter_codes)
    if openvino:
        keep_rounding(builder, graph)
    builder.fill(proto)
    if dense:
        return _folded(proto)
    return _inlined(proto) if inline else proto


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose functions are written out where they are called."""
    from onnx.inliner import inline_local_functions

    model = inline_local_functions(model)
    strip(model)
    rename_values(model, keep=(INPUT, OUTPUT, PAYLOAD))
    return model


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model without functions, its norms folded into the weights before them."""
    import onnx_ir as ir
    from onnxscript.optimizer import optimize_ir

    optimized = ir.from_proto(model)
    optimize_ir(optimized, input_size_limit=_ANY_SIZE, output_size_limit=_ANY_SIZE)
    model = ir.to_proto(optimized)
    strip(model)
    rename_values(model, keep=(INPUT, OUTPUT))
    return model


_ANY_SIZE = 1 << 40


def _fill(
    builder: GraphBuilder,
    skeleton: Skeleton,
    model: nn.Module,
    nodes: list[onnx.NodeProto],
    executions: Mapping[str, GraphExecution],
) -> list[onnx.NodeProto]:
    """Give every value of the graph that stands for a tensor of the network what the compressed network has there.

    Return the network's nodes, with those of layers that run otherwise replaced.
    """
    payload = Payload(builder)
    decoder = Decoder(builder, payload)
    layers, state, wanted = compressed_layers(model), model.state_dict(), _by_layer(skeleton.state)
    decoded = {value for layer in layers for value in wanted.get(layer, {}).values()}
    for layer, execution in executions.items():
        module = layers[layer]
        assert isinstance(module, CompressedConv2d)
        weights = getattr(decoder.filters(module), execution)()
        nodes = replace_calls(nodes, skeleton.calls[layer], module, execution, weights, builder.name)
    read = {name for node in nodes for name in node.input}
    for layer, module in layers.items():
        decoder.decode(module, {key: value for key, value in wanted.get(layer, {}).items() if value in read})
    names = skeleton.state.items()
    for value, name in {value: name for name, value in names if value not in decoded}.items():
        tensor = state[name].detach().cpu().contiguous()
        if tensor.dtype == torch.bool and tensor.numel():
            builder.reshape(payload.numbers(tensor, 1, to=onnx.TensorProto.BOOL), list(tensor.shape), value)
        else:
            builder.constant(tensor.numpy(), value)
    payload.decode()
    return nodes


@torch.no_grad()
def _fill_dense(builder: GraphBuilder, names: Mapping[str, str], model: nn.Module) -> None:
    """Give every value of the graph that stands for a tensor of the network what the compressed layers compute with."""
    layers, state = compressed_layers(model), model.state_dict()
    for value, name in {value: name for name, value in names.items()}.items():
        layer, _, parameter = name.rpartition(".")
        module, tensor = layers.get(layer), state.get(name)
        if isinstance(module, CompressedNorm):
            tensor = module.vectors()[parameter]
        elif module is not None:
            tensor = module.weight if parameter == "weight" else module.rounded_bias()
        assert tensor is not None
        builder.constant(tensor.detach().cpu().contiguous().numpy(), value)


def _by_layer(names: Mapping[str, str]) -> dict[str, dict[str, str]]:
    wanted: dict[str, dict[str, str]] = {}
    for name, value in names.items():
        layer, _, parameter = name.rpartition(".")
        wanted.setdefault(layer, {})[parameter] = value
    return wanted
