"""ONNX files of networks that compute in int8, in their runtimes, against the packed model in PyTorch."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers import LayerForm, OvertoneError, compress_model
from spaces.portable.onnx_file import onnx_file
from spaces.portable.skeleton import Skeleton, make_skeleton
from trainers.start.activations import scale_activations

IMAGE = (3, 12, 12)
INT8 = LayerForm(arithmetic="int8")


class Net(nn.Module):
    """A stem, residual blocks with both kinds of shortcut, a concatenation, pooling, and a classifier of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, affine=False)
        self.conv3 = nn.Conv2d(8, 12, 3, padding=1, stride=2, bias=False)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.side = nn.Conv2d(12, 6, 1)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout()
        self.linear1, self.linear2 = nn.Linear(18, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        y += x
        x = self.relu(y)
        x = F.relu(self.conv3(x) + F.pad(F.avg_pool2d(x, 1, 2), (0, 0, 0, 0, 2, 2)))
        x = F.max_pool2d(F.relu6(self.depthwise(x)), 3, 1, 1)
        x = torch.cat([x, self.side(x)], 1).mean((2, 3))
        return self.linear2(self.drop(F.relu(self.linear1(x))))


LAYERS = ("stem", "conv1", "conv2", "conv3", "depthwise", "side", "linear1", "linear2")


def trained(net: nn.Module, generator: torch.Generator, image: tuple[int, int, int]) -> nn.Module:
    """Return a network with random weights whose norms have seen images."""
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point() and "running" not in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / max(tensor[0].numel() / 2, 2) ** 0.5)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.7
        for _ in range(3):
            net.train()(torch.randn(16, *image, generator=generator))
    return net.eval()


@pytest.fixture(scope="module")
def network(session_seed: int) -> nn.Module:
    return trained(Net(), torch.Generator().manual_seed(session_seed), IMAGE)


@pytest.fixture(scope="module")
def skeleton(network: nn.Module) -> Skeleton:
    return make_skeleton(network, IMAGE)


def compressed(net: nn.Module, forms: dict[str, LayerForm], images: Tensor) -> nn.Module:
    model = compress_model(net, forms)
    scale_activations(model, images)
    return model.eval()


def session(model: bytes, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def in_onnxruntime(model: bytes, images: Tensor) -> Tensor:
    return torch.from_numpy(session(model).run(None, {"images": images.numpy()})[0])


def in_openvino(model: bytes, images: Tensor) -> Tensor:
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(np.array(compiled(images.numpy())[0]))


def test_every_layer_and_sum_runs_in_an_integer_kernel(
    generator: torch.Generator, network: nn.Module, skeleton: Skeleton, tmp_path: Path
) -> None:
    images = torch.randn(16, *IMAGE, generator=generator)
    model = compressed(network, dict.fromkeys(LAYERS, INT8), images)
    session(skeleton.file(model), tmp_path / "o.onnx")
    found = Counter(node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node)
    assert (found["QLinearConv"], found["QLinearAdd"], found["QLinearConcat"], found["QGemm"]) == (6, 2, 1, 2)
    assert not found.keys() & {"Conv", "FusedConv", "Gemm", "MatMul", "Add", "BatchNormalization", "Relu"} - {"Relu"}
    assert sum(found[kind] for kind in ("QuantizeLinear", "DequantizeLinear")) <= 5


FORMS = {
    "stem": LayerForm(basis="cosine", harmonics=(2, 2), bits=6, vector_bits=8, arithmetic="int8"),
    "norm": LayerForm(vector_bits=6),
    "conv1": LayerForm(templates=4, transform="scalar", bits=8, exponent_block=16, arithmetic="int8"),
    "conv2": LayerForm(basis="chebyshev", harmonics=(2, 3), templates=4, transform="affine", arithmetic="int8"),
    "conv3": LayerForm(basis="cosine", harmonics=(2, 2), allocation="filter", bits=4, arithmetic="int8"),
    "depthwise": LayerForm(bits=5, scale="bfloat16", arithmetic="int8"),
    "side": LayerForm(bits=8, activation_bits=6, arithmetic="int8"),
    "linear1": LayerForm(bits=6, arithmetic="int8"),
    "linear2": LayerForm(bits=6, vector_bits=6, arithmetic="int8"),
}


@pytest.mark.parametrize("run", range(4))
def test_files_give_the_outputs_of_the_packed_model(
    generator: torch.Generator, rng: random.Random, network: nn.Module, skeleton: Skeleton, run: int
) -> None:
    images = torch.randn(64, *IMAGE, generator=generator)
    arithmetics = {name: rng.choice(["int8", "int8", "float"]) for name in LAYERS} if run else {}
    forms = {name: replace(form, arithmetic=arithmetics.get(name, form.arithmetic)) for name, form in FORMS.items()}
    model = compressed(network, forms, images)
    with torch.no_grad():
        expected = model(images)
    spread = float(expected.std())
    for outputs in (
        in_onnxruntime(skeleton.file(model), images),
        in_onnxruntime(skeleton.file(model, inline=True), images),
        in_onnxruntime(skeleton.file(model, dense=True), images),
        in_openvino(skeleton.file(model, inline=True, openvino=True), images),
        in_openvino(skeleton.file(model, dense=True, openvino=True), images),
    ):
        assert ((outputs - expected).abs() > 0.02 * spread).float().mean() < 0.01
        assert (outputs.argmax(1) != expected.argmax(1)).float().mean() < 0.02


def test_filters_can_have_seven_bits(generator: torch.Generator, network: nn.Module, skeleton: Skeleton) -> None:
    images = torch.randn(64, *IMAGE, generator=generator)
    model = compressed(network, dict.fromkeys(LAYERS, INT8), images)
    with torch.no_grad():
        expected, spread = model(images), float(model(images).std())
    outputs = in_onnxruntime(skeleton.file(model, filter_codes=63), images)
    assert not torch.equal(outputs, in_onnxruntime(skeleton.file(model), images))
    assert (outputs - expected).abs().mean() < 0.1 * spread


def test_a_network_without_scales_is_not_written(network: nn.Module, skeleton: Skeleton) -> None:
    model = compress_model(network, {"conv1": INT8}).eval()
    with pytest.raises(OvertoneError, match=r"^cannot write layer 'conv1' in int8: its activations have no scale yet$"):
        onnx_file(skeleton, model, executions={})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_networks_of_torchvision_run_in_integer_kernels(generator: torch.Generator, name: str, tmp_path: Path) -> None:
    import torchvision

    image = (3, 64, 64)
    net = trained(torchvision.models.get_model(name, weights=None, num_classes=10), generator, image)
    images = torch.randn(16, *image, generator=generator)
    layers = [path for path, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    model = compressed(net, dict.fromkeys(layers, INT8), images)
    with torch.no_grad():
        expected = model(images)
    file = make_skeleton(net, image).file(model)
    outputs = torch.from_numpy(session(file, tmp_path / "o.onnx").run(None, {"images": images.numpy()})[0])
    found = Counter(node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node)
    assert found["QLinearConv"] + found["QGemm"] == len(layers)
    assert not found.keys() & {"Conv", "FusedConv", "Gemm", "Add"}
    assert (outputs - expected).abs().mean() < 0.05 * float(expected.std())
