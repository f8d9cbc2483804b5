"""Costs of anything that a network may hold, against multiply-accumulates that are computed by hand."""

import random
import re
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.flop_counter import FlopCounterMode

from layers import OvertoneWarning, UsageError, compress_model, pack_state
from spaces import BlockConfig, Network, NetworkConfig, Space, build_model

C, T = 6, 15
"""Channels of the images (1, C, 3, 5), and their pixels."""


class Applies(nn.Module):
    """What a function makes of the images as a sequence (1, T, C), and parts that it may use."""

    def __init__(self, function: Any, **parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.function = function

    def forward(self, images: Tensor) -> Any:
        return self.function(images.flatten(2).mT, images, **self.parts)


class Doubled(torch.autograd.Function):
    """A product inside a function with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        return 2 * (x @ weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None: ...


def recurrent(gates: int, hidden: int, inputs: int) -> int:
    return T * gates * hidden * (inputs + hidden)


def weight(*shape: int) -> Tensor:
    return torch.ones(shape)


ATTENTION = 4 * T * C * C + 2 * T * T * C


class AsSequence(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, images: Tensor) -> Any:
        return self.part(images.flatten(2).mT)


COUNTED: dict[str, tuple[nn.Module, int]] = {
    "LSTM": (nn.LSTM(C, 7, batch_first=True), recurrent(4, 7, C)),
    "LSTM without biases": (nn.LSTM(C, 7, bias=False), recurrent(4, 7, C)),
    "LSTM of two layers, both ways": (
        nn.LSTM(C, 7, num_layers=2, bidirectional=True),
        2 * recurrent(4, 7, C) + 2 * recurrent(4, 7, 14),
    ),
    "LSTM with projections": (nn.LSTM(C, 7, proj_size=3), T * 4 * 7 * (C + 3) + T * 7 * 3),
    "GRU": (nn.GRU(C, 7), recurrent(3, 7, C)),
    "RNN": (nn.RNN(C, 7), recurrent(1, 7, C)),
    "MultiheadAttention": (
        Applies(lambda x, _, part: part(x, x, x)[0], part=nn.MultiheadAttention(C, 2, batch_first=True)),
        ATTENTION,
    ),
    "TransformerEncoderLayer": (
        nn.TransformerEncoderLayer(C, 2, dim_feedforward=11, batch_first=True),
        ATTENTION + 2 * T * C * 11,
    ),
    "scaled_dot_product_attention": (
        Applies(lambda x, _: F.scaled_dot_product_attention(x[None], x[None], x[None])),
        2 * T * T * C,
    ),
    "Bilinear": (Applies(lambda x, _, part: part(x, x), part=nn.Bilinear(C, C, 5)), T * 5 * C * C),
    "Embedding": (Applies(lambda x, _, part: part(x.long()[..., 0]), part=nn.Embedding(4, 9)), 0),
    "einsum": (Applies(lambda x, _: torch.einsum("btc,dc->btd", x, weight(8, C))), T * 8 * C),
    "bmm": (Applies(lambda x, _: torch.bmm(x, x.mT)), T * T * C),
    "baddbmm": (Applies(lambda x, _: torch.baddbmm(weight(1, T, T), x, x.mT)), T * T * C),
    "addbmm": (Applies(lambda x, _: torch.addbmm(weight(T, T), x, x.mT)), T * T * C),
    "mv": (Applies(lambda x, _: x[0] @ weight(C)), T * C),
    "addmv": (Applies(lambda x, _: torch.addmv(weight(T), x[0], weight(C))), T * C),
    "dot": (Applies(lambda x, _: x[0, 0] @ weight(C)), C),
    "addr": (Applies(lambda x, _: torch.addr(weight(C, C), x[0, 0], x[0, 1])), C * C),
    "cdist": (Applies(lambda x, _: torch.cdist(x, x)), T * T * C),
    "custom function": (Applies(lambda x, _: Doubled.apply(x, weight(C, 4))), T * C * 4),
    "functional linear": (Applies(lambda x, _: F.linear(x, weight(9, C))), T * C * 9),
    "functional conv2d": (Applies(lambda _, x: F.conv2d(x, weight(4, 3, 3, 3), groups=2)), 3 * 27 * 4),
    "conv_tbc": (Applies(lambda x, _: torch.conv_tbc(x.transpose(0, 1), weight(3, C, 8), weight(8))), 13 * 3 * C * 8),
    "ConvTranspose1d": (Applies(lambda x, _, part: part(x.mT), part=nn.ConvTranspose1d(C, 4, 3)), T * 3 * C * 4),
    "Conv3d": (Applies(lambda _, x, part: part(x[:, None]), part=nn.Conv3d(1, 4, (2, 3, 3))), 5 * 3 * 18 * 4),
    "deformable": (
        Applies(lambda _, x, part: part(x, weight(1, 18, 1, 3)), part=torchvision.ops.DeformConv2d(C, 4, 3)),
        3 * 9 * C * 4,
    ),
    "weight norm": (Applies(lambda x, _, part: part(x), part=weight_norm(nn.Linear(C, 8))), T * C * 8),
    "values one by one": (
        Applies(
            lambda x, _, norm: F.interpolate(norm(x).softmax(-1) * torch.sigmoid(x), scale_factor=2),
            norm=nn.LayerNorm(C),
        ),
        0,
    ),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", COUNTED)
def test_multiply_accumulates_of_modules_and_functions_are_those_by_hand(name):
    module, macs = COUNTED[name]
    model = module if isinstance(module, Applies) else AsSequence(module)
    network = Network.from_module(nn.Sequential(model), (C, 3, 5))
    assert network.cost(NetworkConfig()).macs == macs
    assert network.uncounted == ()


@pytest.mark.parametrize(
    ("function", "operators"),
    [
        (lambda x, _: torch.fft.rfft2(x).real, ("aten._fft_r2c",)),
        (lambda x, _: torch.linalg.inv(x[:, :C] + torch.eye(C)), ("aten.linalg_inv_ex",)),
        (lambda x, _: torch.ops.overtone_test.product(x, weight(C, 4)), ("overtone_test.product",)),
        (
            lambda x, _: torch.fft.irfft(torch.fft.rfft(torch.linalg.matrix_exp(x @ x.mT))),
            ("aten.linalg_matrix_exp", "aten._fft_r2c", "aten._fft_c2r"),
        ),
    ],
)
def test_operators_that_multiply_and_have_no_formula_are_named_once(function, operators):
    @torch.library.custom_op("overtone_test::product", mutates_args=())
    def product(x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight

    named = ", ".join(operators)
    with pytest.warns(OvertoneWarning, match=rf"^the products of {re.escape(named)} are in no macs"):
        network = Network.from_module(Applies(lambda x, images: (function(x, images), function(x, images))), (C, 3, 5))
    assert network.uncounted == operators


@pytest.mark.parametrize("name", ["swin_t", "maxvit_t", "shufflenet_v2_x0_5", "efficientnet_b0", "convnext_tiny"])
def test_nothing_of_torchvisions_networks_is_left_uncounted(name):
    with torch.random.fork_rng():
        model = build_model(name, classes=3, channels=3)
    network = Network.from_module(model, (3, 224, 224) if name == "maxvit_t" else (3, 64, 64))
    assert network.uncounted == ()


class Adapted(nn.Linear):
    """A layer that holds layers: a product of low rank is added to its own."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__(inputs, outputs)
        self.a = nn.Linear(inputs, rank, bias=False)
        self.b = nn.Linear(rank, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.b(self.a(x))


class AdaptedConv(nn.Conv2d):
    def __init__(self, *shape: int) -> None:
        super().__init__(*shape)
        self.inner = nn.Sequential(nn.Conv2d(shape[0], 2, 1), nn.Conv2d(2, *shape[1:]))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.inner(x)


class Twice(nn.Sequential):
    """Calls its parts twice, on the halves of the images and on all of them, as a batch."""

    def forward(self, x: Tensor) -> Tensor:
        upper, lower = super().forward(torch.cat(x.chunk(2, dim=2))).chunk(2)
        return super().forward(x) + torch.cat([upper, lower], dim=2)


class Sums(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Mixes(nn.Module):
    """Products of the images with themselves, and a layer whose weights it reads without calling it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.read = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.read.weight, self.read.bias)
        rows = x.flatten(2)
        return (rows @ rows.mT @ rows).view_as(x)


def random_part(rng: random.Random, channels: int, depth: int) -> nn.Module:
    """A random network from images of 8 x 8 to as many channels of 8 x 8."""
    kinds = ["conv", "grouped", "norm", "adapted", "mixes", "widened"]
    kinds += ["sequence", "twice", "sums"] * 2 if depth else []
    match rng.choice(kinds):
        case "conv":
            return nn.Conv2d(channels, channels, 3, padding=1, bias=rng.random() < 0.5)
        case "grouped":
            return nn.Conv2d(channels, channels, (1, 5), padding=(0, 2), groups=2)
        case "norm":
            return nn.BatchNorm2d(channels)
        case "adapted":
            return AdaptedConv(channels, channels, 1)
        case "mixes":
            return Mixes(channels)
        case "widened":
            return nn.Sequential(nn.ConvTranspose2d(channels, 5, 2, stride=2), nn.Conv2d(5, channels, 2, stride=2))
        case kind:
            parts = [random_part(rng, channels, depth - 1) for _ in range(rng.randint(1, 3))]
            return {"sequence": nn.Sequential, "twice": Twice, "sums": Sums}[kind](*parts)


def random_network(rng: random.Random) -> nn.Module:
    channels, parts = rng.choice([4, 8]), nn.Sequential()
    parts.add_module("stem", nn.Conv2d(3, channels, 3, padding=1))
    for index in range(rng.randint(1, 4)):
        parts.add_module(f"part{index}", random_part(rng, channels, depth=3))
    parts.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    parts.add_module("fc", Adapted(channels, 5, 2) if rng.random() < 0.5 else nn.Linear(channels, 5))
    return parts.eval()


@pytest.mark.parametrize("granularity", ["stage", "layer"])
@pytest.mark.parametrize("_", range(20))
def test_blocks_share_no_layer_and_costs_add_up_to_the_total(_, granularity, rng, draw):
    model = random_network(rng)
    network = Network.from_module(model, (3, 8, 8), granularity)
    assert sorted(layer for layers in network.blocks.values() for layer in layers) == sorted(network.shapes)
    assert all(network.layers_in(block) == layers for block, layers in network.blocks.items())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 8, 8))
    whole = network.cost(NetworkConfig())
    assert whole.flops == counter.get_total_flops()
    assert whole.parameters == sum(parameter.numel() for parameter in model.parameters())
    space = Space.default(network, minimum_templates=2)
    for config in (NetworkConfig(minimum_templates=2), space.decode(draw(space))):
        blocks = (network.block_cost(block, config.blocks.get(block, BlockConfig()), 2) for block in space.choices)
        assert sum(blocks, network.rest) == network.cost(config)
        compressed = compress_model(model, network.forms(config)).eval()
        assert network.cost(config).parameters == sum(parameter.numel() for parameter in compressed.parameters())
        assert network.cost(config).size_bytes == sum(tensor.nbytes for tensor in pack_state(compressed).values())


def test_a_layer_of_batches_of_parts_of_an_image_saves_in_all_of_them(rng):
    model = Twice(nn.Conv2d(3, 8, 3, padding=1))
    network = Network.from_module(model, (3, 8, 6))
    assert network.rest.macs == 0
    assert network.cost(NetworkConfig()).macs == 2 * 8 * 6 * 27 * 8
    assert len(network.shapes["0"].calls) == 3


@pytest.mark.parametrize("network", [nn.Conv2d(3, 8, 3), Adapted(7, 5, 2), nn.Sequential(nn.ReLU())])
def test_a_network_that_is_a_single_layer_is_counted_once(network):
    found = Network.from_module(network, (3, 5, 7))
    whole = found.cost(NetworkConfig())
    assert whole.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert whole.size_bytes == 4 * whole.parameters
    expected = {nn.Conv2d: 3 * 5 * 27 * 8, Adapted: 15 * (7 * 5 + 7 * 2 + 2 * 5), nn.Sequential: 0}
    assert whole.macs == expected[type(network)]
    if not found.blocks:
        with pytest.raises(UsageError, match=r"^the network has no layer that can be compressed$"):
            Space.default(found)


def test_a_layer_that_does_not_multiply_as_its_kind_does_is_not_offered():
    class Idle(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x

    class Often(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(super().forward(x))

    model = nn.Sequential(Often(3, 3, 1), nn.Conv2d(3, 4, 1), Idle(5, 5))
    network = Network.from_module(model, (3, 5, 5))
    assert list(network.shapes) == ["1"]
    assert network.rest.macs == 2 * 25 * 9
