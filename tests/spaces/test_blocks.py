import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from layers import LayerShape, UsageError, compress_model
from spaces import BlockConfig, Network, NetworkConfig, build_model, load_model, save_model
from spaces.blocks import find_blocks, stages_of
from spaces.tracing import trace


def blocks_of(name: str, granularity="stage") -> dict[str, tuple[str, ...]]:
    with torch.device("meta"):
        model = build_model(name, classes=10, channels=3)
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return find_blocks(layers, granularity)


def test_stages_of_resnet18():
    blocks = blocks_of("resnet18")
    assert list(blocks) == ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"]
    assert blocks["conv1"] == ("conv1",)
    assert blocks["layer1"] == ("layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2")
    assert "layer2.0.downsample.0" in blocks["layer2"]
    assert [len(layers) for layers in blocks.values()] == [1, 4, 5, 5, 5, 1]


def test_stages_of_convnext_are_those_of_its_features():
    blocks = blocks_of("convnext_tiny")
    assert list(blocks) == [*(f"features.{i}" for i in range(8)), "classifier"]
    assert [len(layers) for layers in blocks.values()] == [1, 9, 1, 9, 1, 27, 1, 9, 1]


def test_stages_of_vgg16_are_its_layers():
    convs = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
    expected = {f"features.{i}": (f"features.{i}",) for i in convs} | {"linear": ("linear",)}
    assert blocks_of("vgg16") == expected


def test_stages_of_mobilenet_v2():
    blocks = blocks_of("mobilenet_v2")
    assert list(blocks) == [*(f"features.{i}" for i in range(19)), "classifier"]
    assert blocks["features.1"] == ("features.1.conv.0.0", "features.1.conv.1")
    assert blocks["features.2"] == ("features.2.conv.0.0", "features.2.conv.1.0", "features.2.conv.2")
    assert blocks["classifier"] == ("classifier.1",)


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "convnext_tiny", "mobilenet_v2", "googlenet", "densenet121"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_every_layer_is_in_one_block_in_network_order(name):
    stages, layers = blocks_of(name), blocks_of(name, "layer")
    assert sorted(layer for block in stages.values() for layer in block) == sorted(layers)
    assert all(block == (layer,) for layer, block in layers.items())
    order = list(layers)
    assert all(sorted(block, key=order.index) == list(block) for block in stages.values())
    for block, members in stages.items():
        assert all(layer == block or layer.startswith(f"{block}.") for layer in members)


@pytest.mark.parametrize("name", ["resnet8", "convnext_tiny", "mobilenet_v2", "densenet121"])
def test_every_block_has_a_stage(name):
    stages, layers = blocks_of(name), blocks_of(name, "layer")
    found = stages_of([*layers, "norms_and_biases"], "layer")
    assert found.pop("norms_and_biases") == "norms_and_biases"
    assert found == {layer: stage for stage, members in stages.items() for layer in members}
    assert stages_of(stages, "stage") == {stage: stage for stage in stages}


def test_unknown_granularity_is_refused():
    with pytest.raises(UsageError, match=r"granularity \(='filter'\) must be one of stage, layer"):
        find_blocks(["conv"], "filter")


class Shared(nn.Module):
    """Calls one convolution twice, a linear layer on sequences, and has a layer that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, stride=2, groups=3, bias=False)
        self.tokens = nn.Linear(3, 5)
        self.unused = nn.Linear(2, 2)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 3, "needs colors"
        x = self.norm(self.conv(self.conv(x)))
        return self.tokens(x.flatten(2).mT)


def test_every_call_is_recorded_and_layers_without_one_are_left_out():
    shapes = trace(Shared(), (3, 15, 11)).shapes
    assert shapes == {
        "conv": LayerShape(
            kind="conv2d",
            in_channels=3,
            out_channels=3,
            kernel=(3, 3),
            groups=3,
            calls=(((15, 11), (7, 5)), ((7, 5), (3, 2))),
        ),
        "tokens": LayerShape(kind="linear", in_channels=3, out_channels=5, bias=True, calls=(((1, 6), (1, 6)),)),
    }


def test_linear_layers_on_channels_last_maps_have_a_row_a_pixel():
    class ChannelsLast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.permute(0, 2, 3, 1)

    assert trace(nn.Sequential(ChannelsLast(), nn.Linear(3, 4)), (3, 5, 7)).shapes["1"].calls == (((1, 35), (1, 35)),)


@pytest.mark.parametrize("training", [True, False])
def test_looking_leaves_the_network_as_it_was(training):
    model = Shared().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trace(model, (3, 15, 11))
    assert model.training is model.norm.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("model", "image", "reason"),
    [
        (Shared(), (3, 4, 4), r"3x4x4 images: .*[Kk]ernel size"),
        (Shared(), (1, 15, 11), r"1x15x11 images: needs colors"),
        (build_model("resnet8", classes=2, channels=1), (3, 8, 8), r"3x8x8 images: .*channels"),
    ],
)
def test_images_that_do_not_fit_are_refused_in_one_sentence(model, image, reason):
    with pytest.raises(UsageError, match=rf"the network {type(model).__name__} cannot take {reason}") as caught:
        trace(model, image)
    assert "\n" not in str(caught.value)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


class Rows(nn.Module):
    """Reads every image as a sequence of rows."""

    def __init__(self, *, classes: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 4, 3, padding=1)
        self.rows = nn.Conv1d(4, 6, 5, stride=2, padding=2)
        self.head = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rows(self.stem(x).mean(3)).mean(2))


def test_1d_convolutions_are_layers_with_one_row():
    shapes = trace(Rows(classes=3, channels=1), (1, 8, 6)).shapes
    assert find_blocks(shapes) == {"stem": ("stem",), "rows": ("rows",), "head": ("head",)}
    assert shapes["rows"] == LayerShape(
        kind="conv2d", in_channels=4, out_channels=6, kernel=(1, 5), bias=True, calls=(((1, 8), (1, 4)),)
    )


def test_a_network_with_a_1d_convolution_is_compressed_priced_packed_and_loaded(images, tmp_path):
    model = Rows(classes=3, channels=1)
    network = Network.from_module(model, (1, 8, 6))
    asked = BlockConfig(basis="chebyshev@endpoint", harmonics=(3, 2), bits=6, exponent_block=16)
    config = NetworkConfig(blocks={"rows": asked})
    assert network.forms(config)["rows"].harmonics == (1, 2)
    compressed = compress_model(model, network.forms(config)).eval()
    save_model(compressed, tmp_path / "m.safetensors", card={"model": "x:Rows", "classes": 3, "channels": 1})
    loaded = load_model(tmp_path / "m.safetensors", model=Rows)
    x = images(4, 1, 8, 6)
    assert torch.equal(loaded(x), compressed(x))
    tensors = safetensors.torch.load_file(tmp_path / "m.safetensors")
    assert sum(tensor.nbytes for tensor in tensors.values()) == network.cost(config).size_bytes


def test_layers_whose_weights_the_network_reads_itself_are_not_offered(images):
    """Swin's attention takes the weights of `qkv` without calling it."""
    with torch.random.fork_rng():
        model = build_model("swin_t", classes=2, channels=3).eval()
    network = Network.from_module(model, (3, 64, 64), "layer")
    assert isinstance(model.get_submodule("features.1.0.attn.qkv"), nn.Linear)
    assert not any(name.endswith(".qkv") for name in [*network.blocks, *network.shapes])
    config = NetworkConfig(blocks={block: BlockConfig(bits=8) for block in network.blocks})
    compressed = compress_model(model, network.forms(config))
    assert compressed(images(1, 3, 64, 64)).shape == (1, 2)
    assert network.cost(NetworkConfig()).parameters == sum(weight.numel() for weight in model.parameters())


def test_what_torchs_attention_reads_is_not_offered():
    class Attentive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3)
            self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.last = nn.Linear(8, 4)

        def forward(self, images: Tensor) -> Tensor:
            x = self.encoder(self.first(images).flatten(2).mT)
            return self.last(self.attention(x, x, x)[0].mean(1))

    assert list(trace(Attentive(), (3, 6, 6)).shapes) == ["first", "last"]
