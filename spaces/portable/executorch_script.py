"""A script for an environment that has ExecuTorch; it knows PyTorch and ExecuTorch, and nothing of Overtone.

`python executorch_script.py write PROGRAM FILE` writes a program of `torch.export`, in which the activations of int8
layers are fake-quantized, as a .pte file for XNNPACK. `python executorch_script.py run FILE` reads arrays of images
from its standard input, one after another, and writes their logits to its standard output: each as .npy, behind the
number of its bytes in 8 bytes.
"""

from __future__ import annotations

import os
import sys
import warnings
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_FILTER_CODES = 127
_LEAST_SCALE, _BIAS_LIMIT = 1e-30, 2.0**-30
_OPERATORS = torch.ops.aten
_LAYERS = (_OPERATORS.conv2d.default, _OPERATORS.conv2d.padding, _OPERATORS.conv1d.default, _OPERATORS.linear.default)


def write(program: str, file: str) -> None:
    """Write a program for batches of one image."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    exported = torch.export.load(program)
    (images,) = exported.graph_signature.user_inputs
    (example,) = (node.meta["val"] for node in exported.graph.nodes if node.name == images)
    module = exported.module()
    assert isinstance(module, fx.GraphModule)
    _fold_norms(module)
    _convolve_single_values(module)
    _quantize(module)
    with torch.no_grad():
        quantized = torch.export.export(fx.GraphModule(module, module.graph), (torch.zeros(example.shape),))
    lowered = to_edge_transform_and_lower(quantized, partitioner=[XnnpackPartitioner()]).to_executorch()
    with open(file, "wb") as stream:
        stream.write(lowered.buffer)


def _fold_norms(module: fx.GraphModule) -> None:
    """Fold each norm into the convolution that it alone follows."""
    for norm in module.graph.find_nodes(op="call_function", target=_OPERATORS.batch_norm.default):
        conv = norm.args[0]
        if conv.target not in _LAYERS[:2] or len(conv.users) != 1:
            continue
        weight, bias = (_value(module, _argument(conv, place)) for place in (1, 2))
        scale, shift, mean, variance = (_value(module, _argument(norm, place)) for place in range(1, 5))
        assert weight is not None
        assert mean is not None
        assert variance is not None
        folded = fuse_conv_bn_weights(weight, bias, mean, variance, norm.args[7], scale, shift)
        with module.graph.inserting_before(conv):
            constants = [_constant(module, f"{conv.name}_folded_{i}", part) for i, part in enumerate(folded)]
        conv.args = (conv.args[0], *constants, *conv.args[3:])
        norm.replace_all_uses_with(conv)
        module.graph.erase_node(norm)
    module.graph.eliminate_dead_code()
    module.recompile()


def _convolve_single_values(module: fx.GraphModule) -> None:
    """Write averages of one value as convolutions of each channel: XNNPACK refuses to average less than two."""
    for pool in module.graph.find_nodes(op="call_function", target=_OPERATORS.avg_pool2d.default):
        x, kernel = pool.args[:2]
        if {*kernel} != {1} or {*(_argument(pool, 3) or [0])} != {0}:
            continue
        channels = x.meta["val"].shape[1]
        with module.graph.inserting_before(pool):
            ones = _constant(module, f"{pool.name}_ones", torch.ones(channels, 1, 1, 1))
            arguments = (x, ones, None, _argument(pool, 2) or kernel, [0, 0], [1, 1], channels)
            pool.replace_all_uses_with(module.graph.call_function(_LAYERS[0], arguments))
        module.graph.erase_node(pool)
    module.recompile()


def _quantize(module: fx.GraphModule) -> None:
    """Quantize activations where they are fake-quantized, and the weights of layers that read such activations."""
    import executorch.exir.passes  # noqa: F401  (its operators on quantized tensors)

    operators = torch.ops.quantized_decomposed
    fakes = module.graph.find_nodes(op="call_function", target=_OPERATORS.fake_quantize_per_tensor_affine.default)
    for layer in [node for node in module.graph.nodes if node.target in _LAYERS and node.args[0] in fakes]:
        _quantize_weight(module, layer, layer.args[0].args[1], operators)
    for fake in fakes:
        x, *grid = fake.args
        with module.graph.inserting_before(fake):
            codes = module.graph.call_function(operators.quantize_per_tensor.default, (x, *grid, torch.int8))
            values = module.graph.call_function(operators.dequantize_per_tensor.default, (codes, *grid, torch.int8))
        fake.replace_all_uses_with(values)
        module.graph.erase_node(fake)
    module.graph.eliminate_dead_code()
    module.recompile()


def _quantize_weight(module: fx.GraphModule, layer: fx.Node, input_scale: float, operators: Any) -> None:
    """Exchange a weight for its codes with a scale a filter, so large that the bias has 31 bits."""
    weight, bias = (_value(module, _argument(layer, place)) for place in (1, 2))
    assert weight is not None
    scales = weight.flatten(1).abs().amax(1) / _FILTER_CODES
    if bias is not None:
        scales = scales.maximum(bias.abs() * _BIAS_LIMIT / input_scale)
    scales = torch.where(scales > _LEAST_SCALE, scales, 1.0)
    codes = (weight / scales.view(-1, *[1] * (weight.dim() - 1))).round().clamp(-_FILTER_CODES, _FILTER_CODES)
    with module.graph.inserting_before(layer):
        if _gives_codes(layer):
            parts = [codes.to(torch.int8), scales, torch.zeros_like(scales, dtype=torch.int64)]
            given = [_constant(module, f"{layer.name}_codes_{i}", part) for i, part in enumerate(parts)]
            end = (0, -_FILTER_CODES, _FILTER_CODES, torch.int8)
            values = module.graph.call_function(operators.dequantize_per_channel.default, (*given, *end))
        else:  # XNNPACK has no kernel from codes to numbers
            values = _constant(module, f"{layer.name}_rounded", codes * scales.view(-1, *[1] * (weight.dim() - 1)))
    layer.args = (layer.args[0], values, *layer.args[2:])


def _gives_codes(node: fx.Node) -> bool:
    """Return whether an output is quantized, alone or behind a ReLU."""
    (reader, *others) = node.users
    if not others and reader.target in (_OPERATORS.relu.default, _OPERATORS.relu_.default, _OPERATORS.hardtanh.default):
        return _gives_codes(reader)
    return not others and reader.target is _OPERATORS.fake_quantize_per_tensor_affine.default


def _argument(node: fx.Node, place: int) -> Any:
    return node.args[place] if place < len(node.args) else None


def _value(module: fx.GraphModule, node: Any) -> Tensor | None:
    """Return the constant that a node gets."""
    if node is None:
        return None
    value: Any = module
    for name in node.target.split("."):
        value = getattr(value, name)
    return value.detach()


def _constant(module: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    if value.is_floating_point() and not name.endswith(("codes_1", "codes_2")):
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    else:
        module.register_buffer(name, value)
    return module.graph.get_attr(name)


def run(file: str, images: BinaryIO, logits: BinaryIO) -> None:
    """Write the logits (n, classes) of each array of images (n, C, H, W)."""
    if hasattr(os, "sched_setaffinity"):  # a pool of several threads waits for cores that others have
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(file).load_method("forward")
    while length := int.from_bytes(images.read(8), "little"):
        batch = torch.from_numpy(np.load(BytesIO(images.read(length))))
        outputs = [method.execute([image[None].contiguous()])[0].clone() for image in batch]
        answer = BytesIO()
        np.save(answer, torch.cat(outputs).numpy())
        logits.write(len(answer.getvalue()).to_bytes(8, "little") + answer.getvalue())
        logits.flush()


def main() -> None:
    """Do what the arguments say; of an error the last line of the standard error tells."""
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries that talk do not disturb the answers
    torch.set_num_threads(1)
    if sys.argv[1] == "write":
        write(*sys.argv[2:4])
    else:
        run(sys.argv[2], sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
