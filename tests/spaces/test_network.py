import dataclasses
import hashlib
import json

import pytest
import torch
import torchvision
from torch import Tensor, nn

from layers import Cost, LayerForm, UsageError, compress_model, pack_state
from layers.blockfloat.format import AXES
from layers.series.basis import BASES
from spaces import BlockConfig, Network, NetworkConfig, Space, build_model

PRUNED = BlockConfig(pruning_rate=0.5)
FOUR_BITS = BlockConfig(bits=4)


def series(y: int, x: int, basis="cosine") -> BlockConfig:
    return BlockConfig(basis=basis, harmonics=(y, x))


def in_blocks(block: int = 16, axis=None, inputs=None) -> BlockConfig:
    rounded = None if inputs is None else 6
    return BlockConfig(
        bits=4, exponent_block=block, exponent_axis=axis, activation_bits=rounded, activation_block=inputs
    )


def config(minimum_templates: int = 2, **blocks: BlockConfig) -> NetworkConfig:
    return NetworkConfig(
        blocks={name.replace("__", "."): block for name, block in blocks.items()}, minimum_templates=minimum_templates
    )


@pytest.fixture(scope="module")
def resnet8():
    return Network.from_module(build_model("resnet8", classes=10, channels=1), (1, 8, 8))


def templates(count, transform="scalar"):
    return {"templates": count, "transform": transform, "assignment": "residual"}


def test_a_config_means_a_form_for_each_layer(wide_network):
    block = BlockConfig(basis="chebyshev", harmonics=(3, 5), pruning_rate=0.75, bits=6, exponent_block=16)
    assert wide_network.forms(config(body=block, head=block)) == {
        "body.0": LayerForm(basis="chebyshev", harmonics=(1, 5), **templates(6), bits=6, exponent_block=16),
        "body.3": LayerForm(basis="chebyshev", harmonics=(3, 4), **templates(6), bits=6, exponent_block=16),
        "body.4": LayerForm(**templates(8), bits=6, exponent_block=16),
        "head": LayerForm(bits=6, exponent_block=16),
    }


def test_minimum_of_templates_is_kept(wide_network):
    forms = wide_network.forms(config(7, body2=BlockConfig(pruning_rate=0.9, groups=4)))
    assert forms == {"body2": LayerForm(**templates(7), groups=4)}


@pytest.mark.parametrize(
    "nothing",
    [
        BlockConfig(),
        BlockConfig(basis="cosine", harmonics=(3, 3)),
        BlockConfig(basis="chebyshev", harmonics=(9, 3)),
        BlockConfig(pruning_rate=0.01),
        BlockConfig(pruning_rate=0.01, groups=4, transform="scalar"),
        BlockConfig(groups=4),
        BlockConfig(transform="scalar"),
        BlockConfig(exponent_block=64),
        BlockConfig(exponent_axis="channel"),
        BlockConfig(arithmetic="float"),
    ],
)
def test_knobs_without_effect_collapse(nothing, wide_network):
    asked = config(body2=nothing)
    assert wide_network.forms(asked) == {}
    assert wide_network.canonical(asked) == NetworkConfig(minimum_templates=2)
    assert wide_network.digest(asked) == wide_network.digest(NetworkConfig())
    assert wide_network.cost(asked) == wide_network.cost(NetworkConfig())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (config(body2=PRUNED), config(body2=dataclasses.replace(PRUNED, groups=1, transform="scalar"))),
        (config(body2=FOUR_BITS), config(body2=BlockConfig(bits=4, exponent_block=1, groups=3))),
        (config(head=FOUR_BITS), config(head=dataclasses.replace(FOUR_BITS, exponent_axis="filter"))),
        (config(head=in_blocks(axis="filter")), config(head=in_blocks(axis="channel"))),
        (config(body__4=in_blocks(8, axis="channel")), config(body__4=in_blocks(8, axis="flat"))),
        (config(body2=in_blocks(inputs=32)), config(body2=in_blocks(inputs=100))),
        (config(body__3=in_blocks(inputs=24)), config(body__3=in_blocks(inputs=128))),
        (config(body2=series(1, 1)), config(body2=series(1, 1, "chebyshev"))),
        (config(body2=series(2, 8)), config(body2=series(2, 3))),
        (config(body2=PRUNED), config(body2=BlockConfig(pruning_rate=0.51))),
        (config(2, body2=BlockConfig(pruning_rate=0.9)), config(1, body2=BlockConfig(pruning_rate=0.85))),
        (config(2, body2=PRUNED), config(6, body2=BlockConfig(pruning_rate=0.9))),
        (config(stem=PRUNED, body2=PRUNED), config(body2=PRUNED, stem=PRUNED, head=BlockConfig())),
        (config(body=FOUR_BITS), config(body__0=FOUR_BITS, body__3=FOUR_BITS, body__4=FOUR_BITS)),
    ],
)
def test_two_spellings_are_one_network(one, other, wide_network):
    assert one != other
    assert wide_network.digest(one) == wide_network.digest(other)
    assert wide_network.cost(one) == wide_network.cost(other)


@pytest.mark.parametrize("y", [1, 2, 3])
@pytest.mark.parametrize("x", [1, 2, 3])
def test_families_are_one_where_their_series_are_one(y, x, wide_network):
    def digests(block: str) -> set[str]:
        asked = (series(y, x, family) for family in ("cosine", "chebyshev"))
        return {wide_network.digest(NetworkConfig(blocks={block: one})) for one in asked}

    assert len(digests("body2")) == (1 if max(y, x) < 3 or y == x == 3 else 2)  # 3x3
    assert len(digests("stem")) == (1 if y == x == 1 else 2)  # 7x7


def test_a_basis_with_several_names_is_one(wide_network):
    def form(basis: str, harmonics: tuple[int, int] = (4, 3)) -> str | None:
        config = NetworkConfig(blocks={"stem": BlockConfig(basis=basis, harmonics=harmonics)})
        return wide_network.forms(config)["stem"].basis

    assert form("cosine@half_sample") == form("cosine") == "cosine"
    assert form("cosine@endpoint") == form("chebyshev@gauss_lobatto") == form("chebyshev") == "chebyshev"
    assert form("chebyshev@endpoint") == "chebyshev@endpoint"
    assert form("cosine@gauss_lobatto", (1, 1)) == form("chebyshev@endpoint", (1, 1)) == "cosine"


def test_an_allocation_counts_where_there_is_something_to_allocate(wide_network):
    def forms(**knobs) -> dict[str, LayerForm]:
        blocks = {"stem": BlockConfig(basis="cosine", allocation="filter", **knobs)}
        return wide_network.forms(NetworkConfig(blocks=blocks))

    assert forms(harmonics=(4, 3))["stem"].allocation == "filter"
    assert forms(harmonics=(1, 1))["stem"].allocation is None
    assert forms(harmonics=(7, 7)) == {}
    pruned = forms(harmonics=(4, 3), pruning_rate=0.5)["stem"]
    assert (pruned.allocation, pruned.basis) == (None, "cosine")
    assert pruned.templates is not None


def test_canonical_means_the_same_and_stays_when_repeated(wide_network, rng):
    for _ in range(200):
        blocks = {}
        for name in rng.sample(["stem", "body.0", "body.3", "body.4", "body2", "head"], 4):
            series = (None, None)
            if rng.random() < 0.6:
                series = rng.choice(BASES), (rng.randint(1, 8), rng.randint(1, 8))
            blocks[name] = BlockConfig(
                basis=series[0],
                harmonics=series[1],
                allocation=rng.choice([None, "filter"]) if series[0] else None,
                pruning_rate=rng.choice([None, 0.01, 0.5, 0.9]),
                groups=rng.choice([None, 1]),
                transform=rng.choice([None, "scalar", "rotation", "affine", "zero"]),
                bits=rng.choice([None, 4, 8]),
                exponent_block=rng.choice([None, 1, 16]),
                exponent_axis=rng.choice([None, *AXES]),
                **rng.choice([{}, {"activation_bits": 5, "activation_block": rng.choice([None, 1, 16, 128])}]),
                arithmetic=rng.choice([None, "float", "int8"]),
            )
        asked = NetworkConfig(blocks=blocks, minimum_templates=rng.randint(1, 9))
        canonical = wide_network.canonical(asked)
        assert wide_network.forms(canonical) == wide_network.forms(asked)
        assert wide_network.canonical(canonical) == canonical
        order = [name for name in wide_network.shapes if name in canonical.blocks]
        assert list(canonical.blocks) == order
        for name, block in canonical.blocks.items():
            for knob in dataclasses.fields(block):
                if getattr(block, knob.name) is None or knob.name in ("basis", "harmonics"):
                    continue
                together = ("activation_bits", "activation_block") if knob.name == "activation_bits" else (knob.name,)
                without = dataclasses.replace(block, **dict.fromkeys(together))
                assert wide_network.forms(config(canonical.minimum_templates, **{name: without})) != wide_network.forms(
                    config(canonical.minimum_templates, **{name: block})
                )


def test_axes_and_activation_blocks_mean_what_they_say(wide_network):
    """Of `body.0` 16 channels a filter at 7 taps, of `body.4` 24 at one."""
    asked = in_blocks(16, axis="channel", inputs=20)
    forms = wide_network.forms(config(body=asked))
    assert {name: (form.exponent_axis, form.activation_block) for name, form in forms.items()} == {
        "body.0": ("channel", 16),
        "body.3": ("channel", 20),
        "body.4": ("filter", 20),
    }
    assert wide_network.forms(config(body2=FOUR_BITS))["body2"] == LayerForm(bits=4)


def test_exponents_of_one_network_are_one_config(wide_network):
    """A linear layer of 12 inputs has its channels in a row: filter and channel cut the same blocks, of 4 flat too."""

    def canonical(**blocks: BlockConfig) -> BlockConfig:
        (block,) = wide_network.canonical(config(**blocks)).blocks.values()
        return block

    for axis in ("filter", "channel"):
        assert canonical(head=in_blocks(16, axis)) == in_blocks(16, "filter")
        assert canonical(head=in_blocks(4, axis)) == in_blocks(4)
        assert canonical(body2=in_blocks(20, axis)) == in_blocks(20, axis)
        assert canonical(body2=in_blocks(1, axis)) == FOUR_BITS
    assert canonical(head=in_blocks(inputs=12)) == canonical(head=in_blocks(inputs=128)) == in_blocks(inputs=12)
    assert canonical(head=in_blocks(inputs=1)) == BlockConfig(bits=4, exponent_block=16, activation_bits=6)


def test_different_networks_have_different_digests(resnet8, draw):
    space, digests = Space.default(resnet8), {}
    for _ in range(500):
        asked = space.decode(draw(space))
        forms = repr(sorted(resnet8.forms(asked).items()))
        assert digests.setdefault(resnet8.digest(asked), forms) == forms
    assert len(set(digests.values())) == len(digests) > 300


@pytest.mark.parametrize("name", ["resnet8", "wide"])
def test_cost_is_that_of_the_built_and_packed_network(name, wide, draw):
    model, image = (wide, (3, 12, 12)) if name == "wide" else (build_model(name, classes=10, channels=1), (1, 8, 8))
    network = Network.from_module(model, image)
    space = Space.default(network, minimum_templates=3)
    for _ in range(8):
        asked = space.decode(draw(space))
        cost = network.cost(asked)
        built = compress_model(model, network.forms(asked))
        assert cost.parameters == sum(parameter.numel() for parameter in built.parameters())
        assert cost.size_bytes == sum(tensor.nbytes for tensor in pack_state(built).values())
        blocks = (network.block_cost(block, asked.blocks.get(block, BlockConfig()), 3) for block in space.choices)
        assert sum(blocks, network.rest) == cost


def test_uncompressed_cost_of_resnet8(resnet8):
    cost = resnet8.cost(NetworkConfig())
    assert cost.parameters == 9 * 16 + 9 * (2 * 16**2 + 16 * 32 + 32**2 + 32 * 64 + 64**2) + 480 + 650
    assert cost.size_bytes == 4 * (cost.parameters + 480)  # and as many running statistics as there are norm weights
    convs = 64 * 9 * 16 + 64 * 9 * 2 * 256 + 16 * 9 * (16 * 32 + 32**2) + 4 * 9 * (32 * 64 + 64**2)
    assert cost.macs == convs + 640
    assert cost.flops == 2 * cost.macs


def test_layers_of_a_block_are_found_by_whole_path_parts(wide_network):
    assert wide_network.layers_in("body") == ("body.0", "body.3", "body.4")
    assert wide_network.layers_in("body.3") == ("body.3",)
    assert wide_network.layers_in("body2") == ("body2",)


@pytest.mark.parametrize("block", ["bod", "body.1", "body3", "", "body.3.0"])
def test_unknown_blocks_are_refused(block, wide_network):
    with pytest.raises(UsageError, match=rf"block \(='{block}'\) must be a part of the network, such as "):
        wide_network.forms(NetworkConfig(blocks={block: PRUNED}))


@pytest.mark.parametrize(("one", "other"), [("body", "body.3"), ("body.3", "body")])
def test_overlapping_blocks_are_refused(one, other, wide_network):
    asked = NetworkConfig(blocks={one: PRUNED, other: BlockConfig(bits=4)})
    for call in (wide_network.forms, wide_network.canonical, wide_network.digest, wide_network.cost):
        with pytest.raises(UsageError, match=rf"^block '{other}' holds layers that another block of the config"):
            call(asked)


def test_groups_that_do_not_divide_the_channels_are_refused(wide_network):
    with pytest.raises(UsageError, match=r"groups \(=4\) must divide the 3 channels that a filter sees"):
        wide_network.forms(config(stem=dataclasses.replace(PRUNED, groups=4)))
    with pytest.raises(UsageError, match=r"groups \(=2\) must divide the 1 channels that a filter sees"):
        wide_network.cost(config(body=dataclasses.replace(PRUNED, groups=2)))


def test_families_that_agree_are_one_config(resnet8):
    """Two harmonics on three taps are a constant and a slope in both families."""
    for harmonics, same in (((2, 2), True), ((2, 1), True), ((1, 1), True), ((2, 3), False)):
        configs = [
            resnet8.canonical(NetworkConfig(blocks={"layer2": BlockConfig(basis=family, harmonics=harmonics)}))
            for family in ("cosine", "chebyshev")
        ]
        assert (configs[0] == configs[1]) is same
        assert (resnet8.digest(configs[0]) == resnet8.digest(configs[1])) is same


def test_digests_stay_as_they_are():
    """Trials in ledgers are identified by them."""
    network = Network.from_module(build_model("resnet8", classes=10, channels=1), (1, 8, 8))
    blocks = {"layer1": BlockConfig(basis="cosine", harmonics=(2, 2), bits=8, exponent_block=16)}
    for block, digest in (
        (BlockConfig(bits=4), "3e67f39d19a7126d31722cb4a1ec1e6fefe3dd78e3b3e53940c8df202c979e08"),
        (
            BlockConfig(pruning_rate=0.5, transform="zero", bits=4),
            "07c3a1fc8b74933b36fbe91c734f257bed7b7f3d3f51f8b9d8ffa1b46f734bde",
        ),
    ):
        assert network.digest(NetworkConfig(blocks=blocks | {"layer3": block})) == digest


def test_no_digest_is_that_of_when_bits_rounded_inputs_too():
    """Then it was over the forms alone, without what is newer in them."""
    network = Network.from_module(build_model("resnet8", classes=10, channels=1), (1, 8, 8))
    for block in (BlockConfig(), BlockConfig(bits=4), BlockConfig(basis="cosine", harmonics=(1, 2)), PRUNED):
        asked = NetworkConfig(blocks={"layer3": block})
        now = {name: dataclasses.asdict(form) for name, form in network.forms(asked).items()}
        newer = ("activation_bits", "arithmetic")
        then = {name: {k: v for k, v in form.items() if k not in newer} for name, form in now.items()}
        for forms in (now, then):
            assert network.digest(asked) != hashlib.sha256(json.dumps(forms, sort_keys=True).encode()).hexdigest()


def test_only_transformed_filters_of_two_templates_or_more_are_assigned(wide_network):
    for block, form in (
        (BlockConfig(pruning_rate=0.8), LayerForm(**templates(2))),
        (BlockConfig(pruning_rate=0.99), LayerForm(templates=1, transform="scalar")),
        (BlockConfig(pruning_rate=0.8, transform="zero"), LayerForm(templates=2, transform="zero")),
        (BlockConfig(pruning_rate=0.8, transform="affine"), LayerForm(**templates(2, "affine"))),
    ):
        assert wide_network.forms(config(1, body2=block))["body2"] == form


def test_norms_and_biases_are_all_of_them():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1, bias=False), nn.GroupNorm(2, 6))
    network = Network.from_module(model, (1, 8, 8))
    forms = network.forms(NetworkConfig(blocks={"norms_and_biases": BlockConfig(bits=5), "0": BlockConfig(bits=8)}))
    assert forms == {
        "0": LayerForm(bits=8, vector_bits=5),
        "1": LayerForm(vector_bits=5),
        "3": LayerForm(vector_bits=5),
    }
    assert network.layers_in("norms_and_biases") == ("0", "1", "3")
    assert network.norms_and_biases_cost() == Cost(parameters=4 + 8 + 12, size_bytes=4 * (4 + 16 + 12))
    saved = network.block_cost("norms_and_biases", BlockConfig(bits=5), 8)
    assert saved == Cost(size_bytes=5 * (3 + 4) + 2 * (5 + 6) - 4 * 32)  # mantissas and exponents
    assert network.block_cost("norms_and_biases", BlockConfig(), 8) == Cost()


def test_norms_and_biases_take_bits_alone(resnet8):
    for asked in (PRUNED, series(2, 2), in_blocks(16), in_blocks(1), BlockConfig(bits=8, groups=2)):
        with pytest.raises(UsageError, match=r"^block 'norms_and_biases' takes bits alone, not BlockConfig\("):
            resnet8.forms(config(norms_and_biases=asked))
    assert resnet8.canonical(config(norms_and_biases=FOUR_BITS)) == config(norms_and_biases=FOUR_BITS)
    assert resnet8.canonical(config(norms_and_biases=BlockConfig())) == config()
    assert resnet8.digest(config(norms_and_biases=FOUR_BITS)) != resnet8.digest(config())


def test_a_part_of_the_network_cannot_be_called_norms_and_biases():
    model = nn.Sequential()
    model.add_module("norms_and_biases", nn.Conv2d(1, 4, 3))
    with pytest.raises(UsageError, match=r"^the network's part 'norms_and_biases' needs another name"):
        Network.from_module(model, (1, 8, 8))


@pytest.mark.parametrize("transform", ["rotation", "affine"])
def test_filters_of_a_single_tap_take_gains(transform):
    network = Network.from_module(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1)), (1, 8, 8))
    pruned = BlockConfig(pruning_rate=0.5, transform=transform)
    forms = network.forms(NetworkConfig(blocks={"0": pruned, "1": pruned}, minimum_templates=2))
    assert (forms["0"].transform, forms["1"].transform) == (transform, "scalar")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_large", "convnext_tiny", "swin_t", "vit_b_16"])
def test_multiply_accumulates_are_those_that_torchvision_publishes(name):
    published = torchvision.models.get_model_weights(name).DEFAULT.meta["_ops"]
    model = build_model(name, classes=1000, channels=3)
    assert round(Network.from_module(model, (3, 224, 224)).cost(NetworkConfig()).macs / 1e9, 3) == published


def test_products_outside_of_layers_count():
    class Producing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 4, 2, stride=2)
            self.down = nn.Conv2d(4, 6, 3)

        def forward(self, images: Tensor) -> Tensor:
            x = self.down(self.up(images)).flatten(2)
            return (x @ x.mT).flatten(1)

    network = Network.from_module(Producing(), (3, 5, 7))
    assert network.rest.macs == 5 * 7 * 3 * 4 * 4 + 6 * 6 * 8 * 12
    assert network.cost(NetworkConfig()).macs == network.rest.macs + 8 * 12 * 9 * 4 * 6
    assert torch.backends.mha.get_fastpath_enabled()
