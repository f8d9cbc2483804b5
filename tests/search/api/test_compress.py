import copy

import pytest
import torch
from torch import nn

from layers import Cost, OvertoneError, UsageError, compress_model, compressed_layers
from search.api.compress import compress
from spaces import BlockConfig, Network, NetworkConfig, build_model
from tests.trainers.odd_networks import IMAGE, ByClosure, TwoOutputs
from trainers.start.calibration import calibrate

CHAIN = NetworkConfig(
    blocks={
        "stem": BlockConfig(basis="cosine", harmonics=(3, 2), bits=6),
        "layer1": BlockConfig(pruning_rate=0.5, transform="affine", bits=8, exponent_block=16),
    }
)


class Net(nn.Module):
    """Three stages, the second of two layers, with norms and biases."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 5, padding=2)
        self.layer1 = nn.Sequential(
            *(nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
            *(nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)),
        )
        self.layer2 = nn.Conv2d(12, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer2(torch.relu(self.layer1(torch.relu(self.stem(x)))))
        logits: torch.Tensor = self.head(torch.relu(x).mean((2, 3)))
        return logits


@pytest.fixture
def net(generator) -> Net:
    """Smooth filters and varied norms, as training leaves them."""
    module = Net()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(std=0.3, generator=generator)
            if parameter.dim() == 4:
                parameter.add_(parameter.mean((2, 3), keepdim=True))
            if name.endswith(("1.weight", "4.weight")):
                parameter.abs_().add_(0.5)
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 2.0, generator=generator)
    return module


@pytest.fixture
def images(generator) -> torch.Tensor:
    return torch.randn(48, 2, 9, 8, generator=generator)


def by_hand(net: nn.Module, config: NetworkConfig, images: torch.Tensor, *, calibrated: bool) -> tuple[nn.Module, Cost]:
    dense = copy.deepcopy(net).eval()
    network = Network.from_module(dense, tuple(images.shape[1:]))
    model = compress_model(dense, network.forms(config)).eval()
    if calibrated:
        calibrate(model, dense, images)
    return model, network.cost(config)


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_block_can_compute_in_int8(net, images, calibrated):
    config = {"all": {"bits": 8}, "layer1": {"arithmetic": "int8", "harmonics": 2}, "head": {"arithmetic": "int8"}}
    model, cost = compress(net, config, images=images, calibrated=calibrated)
    floating = {block: {k: v for k, v in knobs.items() if k != "arithmetic"} for block, knobs in config.items()}
    other, same_cost = compress(net, floating, images=images, calibrated=calibrated)
    assert cost == same_cost
    one, two = outputs(model, images), outputs(other, images)
    assert 0 < (one - two).abs().max() < 0.2 * two.abs().max()
    assert torch.equal(outputs(model, images), one)


def outputs(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(images)


def block(**knobs) -> BlockConfig:
    return BlockConfig(**knobs)


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize(
    ("config", "blocks"),
    [
        (CHAIN, CHAIN.blocks),
        ({}, {}),
        ({"all": {}}, {}),
        ({"stem": {}}, {}),
        ({"stem": {"harmonics": 2}}, {"stem": block(basis="cosine", harmonics=(2, 2))}),
        ({"stem": {"harmonics": [3, 2]}}, {"stem": block(basis="cosine", harmonics=(3, 2))}),
        (
            {"stem": {"harmonics": (1, 3), "basis": "chebyshev", "allocation": "filter"}},
            {"stem": block(basis="chebyshev", harmonics=(1, 3), allocation="filter")},
        ),
        ({"stem": {"harmonics": None, "bits": 5}}, {"stem": block(bits=5)}),
        (
            {"all": {"bits": 6}},
            {name: block(bits=6) for name in ("stem", "layer1", "layer2", "head")},
        ),
        (
            {"all": {"bits": 6, "harmonics": 2}, "layer1": {"bits": 4}, "head": {"harmonics": None}},
            {
                "stem": block(bits=6, basis="cosine", harmonics=(2, 2)),
                "layer1": block(bits=4, basis="cosine", harmonics=(2, 2)),
                "layer2": block(bits=6, basis="cosine", harmonics=(2, 2)),
                "head": block(bits=6),
            },
        ),
        (
            {"layer1.3": {"pruning_rate": 0.5}, "all": {"bits": 6}},
            {
                "stem": block(bits=6),
                "layer1.0": block(bits=6),
                "layer1.3": block(bits=6, pruning_rate=0.5),
                "layer2": block(bits=6),
                "head": block(bits=6),
            },
        ),
        (
            {"all": {"bits": 6}, "layer1.0": {}, "layer1.3": {"bits": None}},
            {name: block(bits=6) for name in ("stem", "layer1.0", "layer2", "head")},
        ),
        (
            {"all": {"bits": 6}, "norms_and_biases": {"bits": 9}},
            {
                **{name: block(bits=6) for name in ("stem", "layer1", "layer2", "head")},
                "norms_and_biases": block(bits=9),
            },
        ),
        ({"norms_and_biases": {"bits": 7}}, {"norms_and_biases": block(bits=7)}),
    ],
)
def test_a_config_is_what_it_is_by_hand(net, images, config, blocks, calibrated):
    before = copy.deepcopy(config)
    model, cost = compress(net, config, images=images, calibrated=calibrated)
    expected, expected_cost = by_hand(net, NetworkConfig(blocks=blocks), images, calibrated=calibrated)
    assert {n: layer.form for n, layer in compressed_layers(model).items()} == {
        n: layer.form for n, layer in compressed_layers(expected).items()
    }
    assert cost == expected_cost
    assert torch.equal(outputs(model, images), outputs(expected, images))
    assert not any(module.training for module in model.modules())
    assert config == before


@pytest.mark.parametrize("least", [1, 4, 12])
def test_templates_have_their_least_number(net, images, least):
    model, cost = compress(net, {"layer1": {"pruning_rate": 0.9}}, images=images, minimum_templates=least)
    config = NetworkConfig(blocks={"layer1": BlockConfig(pruning_rate=0.9)}, minimum_templates=least)
    expected, expected_cost = by_hand(net, config, images, calibrated=True)
    assert cost == expected_cost
    assert torch.equal(outputs(model, images), outputs(expected, images))


def test_nothing_to_compress_changes_nothing(net, images):
    model, cost = compress(net, {}, images=images)
    network = Network.from_module(net, (2, 9, 8))
    assert cost == network.cost(NetworkConfig())
    assert torch.equal(outputs(model, images), outputs(net.eval(), images))


@pytest.mark.parametrize("calibrated", [True, False])
def test_the_network_and_the_images_stay_as_they_are(net, images, calibrated):
    net.train().requires_grad_(False)
    net.layer1.eval()
    modes = [module.training for module in net.modules()]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    kept, drawn = images.clone(), torch.get_rng_state()
    model, _ = compress(net, CHAIN, images=images.requires_grad_(), calibrated=calibrated)
    model.train()(images.detach()).square().sum().backward()
    torch.optim.SGD(model.parameters(), 1.0).step()
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in net.parameters())
    assert images.grad is None
    assert torch.equal(images, kept)
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_images_of_other_floats_are_those_rounded(net, images, dtype):
    expected, _ = compress(net, CHAIN, images=images.to(dtype).float())
    found, _ = compress(net, CHAIN, images=images.to(dtype))
    assert torch.equal(outputs(found, images), outputs(expected, images))


@pytest.mark.parametrize("knobs", [{"harmonics": 2}, {"harmonics": 1}, {"harmonics": 2, "basis": "chebyshev"}])
@pytest.mark.parametrize("layer", ["layer2", "stem"])
def test_calibration_comes_closer_to_a_layers_outputs(net, images, knobs, layer):
    """With the layers behind it cut away, a linear layer's least squares on its outputs cannot lose."""
    chain = nn.Sequential(net.stem, nn.ReLU()) if layer == "stem" else nn.Sequential(net.stem, net.layer1, net.layer2)
    config = {"0" if layer == "stem" else "2": knobs}
    exact = outputs(chain[:1].eval() if layer == "stem" else chain.eval(), images)
    errors = []
    for calibrated in (True, False):
        model, _ = compress(chain, config, images=images, calibrated=calibrated)
        found = outputs(model[:1] if layer == "stem" else model, images)
        errors.append(float((found - exact).square().mean()))
    assert errors[0] <= errors[1] * (1 + 1e-5)


def test_calibration_comes_closer_to_a_networks_outputs(session_seed):
    """Of a network that training could have left, all layers of which are compressed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(session_seed)
        net = build_model("resnet8", classes=10, channels=1)
        images = torch.randn(64, 1, 8, 8)
    for _ in range(20):  # the norms learn what their inputs are
        outputs(net.train(), images)
    exact = outputs(net.eval(), images)
    config = {"all": {"harmonics": 2, "bits": 8}}
    errors = [
        float((outputs(compress(net, config, images=images, calibrated=calibrated)[0], images) - exact).square().mean())
        for calibrated in (True, False)
    ]
    assert errors[0] <= errors[1]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("stem", r"config \(='stem'\) must be a NetworkConfig, or map blocks to knobs and their values$"),
        (None, r"config \(=None\) must be a NetworkConfig, or map blocks to knobs and their values$"),
        ({"stem": 5}, r"config \(='stem': 5\) must map blocks to knobs and their values$"),
        ({"all": None}, r"config \(='all': None\) must map blocks to knobs and their values$"),
        ({1: {"bits": 6}}, r"config \(=1: {'bits': 6}\) must map blocks to knobs and their values$"),
        ({"layer3": {"bits": 6}}, r"block \(='layer3'\) must be a part of the network, such as layer\d"),
        ({"layer3": {}, "all": {"bits": 6}}, r"block \(='layer3'\) must be a part of the network"),
        ({"layer3": {}}, r"block \(='layer3'\) must be a part of the network"),
        ({"": {"bits": 6}}, r"block \(=''\) must be a part of the network"),
        ({"stem": {"bit": 6}}, r"knobs \(=bit\) of 'stem' must be among basis, harmonics, .*, arithmetic$"),
        ({"all": {"bit": 6}}, r"knobs \(=bit\) of 'all' must be among basis"),
        ({"stem": {1: 6}}, r"knobs \(=1\) of 'stem' must be among basis"),
        ({"stem": {"bits": 99}}, r"bits \(=99\) must be a whole number from 1 to 16, or left out$"),
        ({"all": {"bits": "6"}}, r"bits \(='6'\) must be a whole number"),
        *(
            ({"stem": {"harmonics": value}}, r"harmonics \(=.*\) must be two whole numbers of at least 1, \(y, x\)$")
            for value in (0, -1, 2.0, "2", "22", True, [2], (2, 2, 2), (), {}, (2, 0))
        ),
        ({"stem": {"basis": "cosine"}}, r"basis \(='cosine'\) and harmonics \(=None\) must be given together$"),
        ({"stem": {"basis": "sine", "harmonics": 2}}, r"basis \(='sine'\) must be cosine or chebyshev"),
        ({"norms_and_biases": {"harmonics": 2}}, r"block 'norms_and_biases' takes bits alone"),
        ({"layer1": {"bits": 6}, "layer1.0": {"bits": 5}}, r"block 'layer1.0' holds layers that another block of the"),
        (
            {"all": {"bits": 6}, "layer1": {}, "layer1.0": {"bits": 5}},
            r"block 'layer1.0' holds layers that another block of the config holds too$",
        ),
    ],
)
def test_configs_that_cannot_be_are_one_sentence(net, images, config, message):
    with pytest.raises(UsageError, match=rf"^{message}"):
        compress(net, config, images=images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.numpy(), r"images \(=ndarray\) must be a float tensor \(n, C, H, W\) of one image or more$"),
        (lambda x: None, r"images \(=NoneType\) must be a float tensor"),
        (lambda x: x[0], r"images \(=torch.float32 \(2, 9, 8\)\) must be a float tensor"),
        (lambda x: x[:0], r"images \(=torch.float32 \(0, 2, 9, 8\)\) must be a float tensor"),
        (lambda x: x.byte(), r"images \(=torch.uint8 \(48, 2, 9, 8\)\) must be a float tensor"),
        (lambda x: x[:, :1], r"the network Net cannot take 1x9x8 images: "),
        (lambda x: x[:, :, :0], r"the network Net cannot take 2x0x8 images: "),
    ],
)
def test_images_that_do_not_fit_are_one_sentence(net, images, change, message):
    with pytest.raises(UsageError, match=rf"^{message}"):
        compress(net, {"stem": {"harmonics": 2}}, images=change(images))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_images_that_are_not_finite_cannot_calibrate(net, images, bad):
    images[3, 1, 4, 4] = bad
    with pytest.raises(
        OvertoneError, match=r"^layer 'stem': cannot calibrate the layer: its inputs or outputs are not"
    ):
        compress(net, {"stem": {"harmonics": 2}}, images=images)


class Failing(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("boom")


def test_what_is_no_usable_network_is_one_sentence(net, images):
    with pytest.raises(UsageError, match=r"^model \(='resnet8'\) must be a torch.nn.Module$"):
        compress("resnet8", {}, images=images)
    with pytest.raises(
        UsageError, match=r"^model \(='object:Net'\) must have float32 weights: 'stem.weight' is float16$"
    ):
        compress(net.half(), {}, images=images)
    with pytest.raises(UsageError, match=r"^the network Failing cannot take 2x9x8 images: 'boom'$"):
        compress(Failing(), {}, images=images)


def test_a_network_that_calls_a_layer_through_a_closure_is_one_sentence(generator):
    message = r"^model \(='object:ByClosure'\) must run its layer 'second' as often when it is copied, 1 times, not 0: "
    with pytest.raises(UsageError, match=message):
        compress(ByClosure(), {"second": {"bits": 6}}, images=torch.randn(4, *IMAGE, generator=generator))


def test_a_network_may_give_what_it_likes(generator):
    images = torch.randn(4, *IMAGE, generator=generator)
    small, _ = compress(TwoOutputs().train(), {"second": {"harmonics": 2}}, images=images)
    assert small(images).shape == (4, 4)
    assert len(small.train()(images)) == 2
