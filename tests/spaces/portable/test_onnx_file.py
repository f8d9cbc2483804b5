"""ONNX files of random forms in their runtimes, against the packed model in PyTorch."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from torch import Tensor, nn

from layers import CompressedNorm, LayerForm, LayerShape, compress_model, compressed_layers
from layers.blockfloat.format import AXES
from layers.form import stored_tensors
from layers.series.basis import BASES
from layers.templates.transforms import TRANSFORMS
from spaces import BlockConfig, Network, NetworkConfig, build_model
from spaces.portable.executions import graph_execution
from spaces.portable.skeleton import Skeleton, make_skeleton

IMAGE = (3, 9, 8)


class Net(nn.Module):
    """Every kind of layer that can be compressed, and what may go wrong with its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.wide = nn.Conv2d(12, 16, (3, 5), padding=(2, 1), stride=2, dilation=(2, 1), padding_mode="reflect")
        self.grouped = nn.Conv2d(16, 16, 4, padding="same", groups=2, bias=False)
        self.point = nn.Conv2d(16, 12, 1)
        self.group_norm = nn.GroupNorm(3, 12)
        self.row = nn.Conv1d(12, 8, 3, padding=1, padding_mode="replicate")
        self.layer_norm = nn.LayerNorm(8)
        self.rows = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5, bias=False)
        self.register_buffer("flags", torch.tensor([True, False, True, True, False]))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.plain(x)))
        x = torch.relu(self.grouped(self.wide(x)))
        x = self.row(self.group_norm(self.point(x)).flatten(2)).transpose(1, 2)
        x = torch.relu(self.rows(self.layer_norm(x))).mean(1)
        return torch.where(self.flags, self.head(x), x[:, :5]) * (1 + self.plain.weight.square().mean())


def network(generator: torch.Generator) -> nn.Module:
    net = Net().eval()
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - (0.0 if "running_var" in name else 0.5))
    return net


@pytest.fixture(scope="module")
def skeleton(session_seed: int) -> Skeleton:
    return make_skeleton(network(torch.Generator().manual_seed(session_seed)), IMAGE)


def random_form(rng: random.Random, layer: nn.Module) -> LayerForm:
    """Any legal form of the layer."""
    shape = LayerShape.from_module(layer)
    vector_bits = rng.choice([None, rng.randint(1, 16)])
    if shape.kind == "norm":
        return LayerForm(vector_bits=vector_bits)
    form = LayerForm(vector_bits=vector_bits if shape.bias else None)
    if rng.random() < 0.6:
        form = replace(
            form, bits=rng.randint(1, 16), exponent_block=rng.randint(1, 40), exponent_bits=rng.randint(6, 7)
        )
    elif rng.random() < 0.6:
        form = replace(form, bits=rng.randint(2, 7), scale="bfloat16")
    if shape.kind == "linear":
        return form
    if form.bits is not None and form.scale is None:
        form = replace(form, exponent_axis=rng.choice(AXES))
    if rng.random() < 0.7:
        harmonics = tuple(rng.randint(1, k) for k in shape.kernel)
        form = replace(form, basis=rng.choice(BASES), harmonics=harmonics)
        if rng.random() < 0.3:
            return replace(form, allocation="filter")
    if rng.random() < 0.7:
        count, transform = rng.randint(1, shape.out_channels), rng.choice(TRANSFORMS)
        groups = rng.choice([g for g in range(1, 5) if shape.filter_channels % g == 0])
        form = replace(form, templates=count, groups=groups, transform=transform)
        if count > 1 and transform != "zero" and rng.random() < 0.5:
            form = replace(form, assignment="residual")
    return form


def random_model(generator: torch.Generator, rng: random.Random, **changes: Any) -> nn.Module:
    net = network(generator)
    kinds = (nn.Conv2d, nn.Conv1d, nn.Linear, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
    forms = {n: random_form(rng, m) for n, m in net.named_modules() if isinstance(m, kinds)}
    for name, form in forms.items():
        if not isinstance(net.get_submodule(name), nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            forms[name] = replace(form, **{k: v(rng) if callable(v) else v for k, v in changes.items()})
    model = compress_model(net, forms).eval()
    with torch.no_grad():
        for layer in compressed_layers(model).values():
            for name, stored in stored_tensors(layer.shape, layer.form).items():
                if name != "coefficients" and not isinstance(layer, CompressedNorm):
                    tensor = getattr(layer, name)
                    tensor += torch.rand(stored.shape, generator=generator) - 0.5
    return model


def session(model: bytes, folded: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if folded is not None:
        options.optimized_model_filepath = str(folded)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def in_onnxruntime(model: bytes, images: Tensor) -> Tensor:
    return torch.from_numpy(session(model).run(None, {"images": images.numpy()})[0])


def in_openvino(model: bytes, images: Tensor) -> Tensor:
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(np.array(compiled(images.numpy())[0]))


@pytest.mark.parametrize("run", range(3))
def test_files_of_random_forms_give_the_packed_models_outputs(
    generator: torch.Generator, rng: random.Random, skeleton: Skeleton, run: int
) -> None:
    model = random_model(generator, rng)
    images = torch.randn(3, *IMAGE, generator=generator)
    with torch.no_grad():
        expected = model(images)
    scale = float(expected.abs().max())
    executions = {name: graph_execution(layer) for name, layer in compressed_layers(model).items()}
    otherwise = {name: execution for name, execution in executions.items() if execution is not None}
    for outputs in (
        in_onnxruntime(skeleton.file(model), images),
        in_onnxruntime(skeleton.file(model, executions=otherwise), images),
        in_openvino(skeleton.file(model, executions=otherwise, inline=True), images),
        in_onnxruntime(skeleton.file(model, inline=True), images[:1]),
        in_openvino(skeleton.file(model, inline=True), images),
        in_onnxruntime(skeleton.file(model, dense=True), images),
    ):
        torch.testing.assert_close(outputs, expected[: len(outputs)], rtol=1e-4, atol=1e-5 * scale)


def test_weights_are_decoded_to_the_layers_filters(
    generator: torch.Generator, rng: random.Random, skeleton: Skeleton
) -> None:
    """Bit for bit where there is one order of additions."""
    model = random_model(generator, rng)
    proto = onnx.ModelProto.FromString(skeleton.file(model))
    layers = {n: layer for n, layer in compressed_layers(model).items() if not isinstance(layer, CompressedNorm)}
    names = {skeleton.state[f"{name}.weight"]: layer for name, layer in layers.items()}
    for value in names:
        proto.graph.output.append(onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None))
    weights = session(proto.SerializeToString()).run(list(names), {"images": np.zeros((1, *IMAGE), np.float32)})
    for weight, layer in zip(weights, names.values(), strict=True):
        found, expected = torch.from_numpy(weight), layer.weight.detach()
        if layer.form.harmonics in (None, (1, 1)) and layer.form.transform in (None, "scalar", "zero"):
            assert torch.equal(found, expected), layer.form
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


@pytest.fixture(scope="module")
def rounding_skeletons() -> list[tuple[nn.Module, Skeleton]]:
    layers = (nn.Conv2d(11, 6, 3, padding=1, padding_mode="circular"), nn.Linear(11, 5))
    return [(net, make_skeleton(net, (11, 6, 11))) for net in (nn.Sequential(layer).eval() for layer in layers)]


@pytest.mark.parametrize("block", [1, 3, 16])
@pytest.mark.parametrize("kind", [0, 1], ids=["convolution", "linear"])
def test_inputs_are_rounded_as_the_layers_round_them(
    generator: torch.Generator,
    rng: random.Random,
    rounding_skeletons: list[tuple[nn.Module, Skeleton]],
    kind: int,
    block: int,
) -> None:
    net, skeleton = rounding_skeletons[kind]
    form = LayerForm(activation_bits=rng.randint(1, 16), activation_block=block, exponent_bits=rng.randint(3, 7))
    model = compress_model(net, {"0": form}).eval()
    spread = torch.randint(-12, 3, (2, 11, 1, 11), generator=generator)
    images = torch.randn(2, 11, 6, 11, generator=generator) * torch.exp2(spread.float())
    images[0, 0, 0, 0] = 0.0
    with torch.no_grad():
        expected = model(images)
    for inline in (False, True):
        outputs = in_onnxruntime(skeleton.file(model, inline=inline), images)
        torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


RESNET_IMAGE = (3, 16, 16)


@pytest.fixture(scope="module")
def resnet() -> tuple[nn.Module, Network, Skeleton]:
    net = build_model("resnet8", classes=10, channels=3).eval()
    return net, Network.from_module(net, RESNET_IMAGE), make_skeleton(net, RESNET_IMAGE)


MIXED = {
    "bits": {"bits": 5, "exponent_block": 7, "exponent_axis": "filter"},
    "series": {"basis": "cosine", "harmonics": (2, 2), "bits": 6, "exponent_block": 8},
    "allocated": {"basis": "chebyshev", "harmonics": (2, 2), "allocation": "filter"},
    "templates": {"basis": "cosine", "harmonics": (2, 2), "pruning_rate": 0.5, "transform": "affine", "bits": 7},
    "rotations": {"pruning_rate": 0.5, "transform": "rotation"},
    "zeros": {"pruning_rate": 0.5, "transform": "zero", "bits": 4},
}


@pytest.mark.parametrize("kind", MIXED)
def test_runtimes_decode_a_file_once_and_it_keeps_to_its_bytes(
    resnet: tuple[nn.Module, Network, Skeleton], tmp_path: Path, kind: str
) -> None:
    net, network, skeleton = resnet
    blocks = {block: BlockConfig(**MIXED[kind]) for block in network.blocks} | {"norms_and_biases": BlockConfig(bits=8)}
    config = NetworkConfig(blocks=blocks, minimum_templates=2)
    model = compress_model(net, network.forms(config)).eval()
    executions = {n: e for n, layer in compressed_layers(model).items() if (e := graph_execution(layer)) is not None}
    size, layers = network.cost(config).size_bytes, len(skeleton.calls)
    file, inlined = skeleton.file(model), skeleton.file(model, inline=True)
    assert len(file) <= 1.1 * size + 500 * layers + 6_000
    assert len(inlined) <= 1.1 * size + 3_000 * layers + 6_000
    assert not onnx.ModelProto.FromString(inlined).functions
    for content, stages in ((file, 0), (skeleton.file(model, executions=executions), len(executions))):
        session(content, tmp_path / "folded.onnx")
        folded = onnx.load(tmp_path / "folded.onnx").graph.node
        kinds = {node.op_type for node in folded} - {"ReorderInput", "ReorderOutput", "FusedConv", "FusedGemm"}
        assert kinds <= {"Conv", "Relu", "Add", "AveragePool", "Pad", "ReduceMean", "Gemm", "Gather"}
        assert sum(node.op_type in ("Conv", "FusedConv") for node in folded) == 7 + stages
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(inlined), "CPU").get_runtime_model().get_ops()
    run = {op.get_rt_info()["layerType"].astype(str) for op in compiled}
    moved = {"Input", "Output", "Const", "Reorder", "Reshape"}
    assert run <= moved | {"Convolution", "Pooling", "Pad", "Reduce", "FullyConnected", "Eltwise", "Subgraph"}
