import dataclasses
from math import prod

import pytest

from layers import UsageError
from spaces import BlockConfig, Network, NetworkConfig, Space, build_model
from spaces.space import KNOBS


@pytest.fixture(scope="module")
def resnet8_space():
    return Space.default(Network.from_module(build_model("resnet8", classes=10, channels=1), (1, 8, 8)))


@pytest.fixture(params=["resnet8", "wide"])
def space(request, resnet8_space):
    return resnet8_space if request.param == "resnet8" else request.getfixturevalue("wide_space")


def spelled(space: Space, values: dict) -> NetworkConfig:
    """The config that the values say, no-op knobs and all."""
    blocks = {}
    for block in space.choices:
        knobs = {knob: values[f"{block}.{knob}"] for knob in space.choices[block]}
        tall, wide = knobs.pop("harmonics_y", None), knobs.pop("harmonics_x", None)
        if knobs.get("activation_bits") is None:
            knobs.pop("activation_block", None)  # refused without them
        blocks[block] = BlockConfig(**knobs, harmonics=None if tall is None else (tall, wide))
    return NetworkConfig(blocks=blocks, minimum_templates=space.minimum_templates)


@pytest.mark.parametrize("draws", [400, pytest.param(2000, marks=pytest.mark.slow)])
def test_decode_and_encode_are_inverse(draws, space, draw):
    for _ in range(draws):
        values = draw(space)
        config = space.decode(values)
        assert space.network.digest(config) == space.network.digest(spelled(space, values))
        encoded = space.encode(config)
        assert set(encoded) == set(space.knobs)
        assert all(value in space.knobs[knob] for knob, value in encoded.items())
        assert space.decode(encoded) == config


def test_int8_is_in_the_default_space_where_it_pays(resnet8_space, draw):
    network = resnet8_space.network
    space = Space.default(network, int8=True)
    for block in network.blocks:
        assert space.choices[block]["arithmetic"] == ("float", "int8")
        assert resnet8_space.choices[block]["arithmetic"] == ("float",)
    assert "arithmetic" not in space.choices["norms_and_biases"]
    config = space.decode({"layer1.arithmetic": "int8", "layer1.bits": 6})
    assert space.encode(config)["layer1.arithmetic"] == "int8"
    blocks = {name: dataclasses.replace(block, arithmetic=None) for name, block in config.blocks.items()}
    floating = dataclasses.replace(config, blocks=blocks)
    assert network.cost(config) == network.cost(floating)
    assert network.digest(config) != network.digest(floating)


def test_values_that_all_matter_come_back_as_they_were(resnet8_space, rng):
    space = resnet8_space
    for _ in range(200):
        values = {}
        for knob, allowed in space.knobs.items():
            values[knob] = rng.choice([value for value in allowed if value is not None] or [None])
            if "harmonics" in knob:  # 2 x 3 of 3 x 3 taps: the families differ in x
                values[knob] = 2 if knob.endswith("_y") else 3
            if knob.endswith(".allocation"):  # of no effect where a block is pruned
                values[knob] = None
        assert space.encode(space.decode(values)) == values


def test_allocations_come_back_as_they_were(resnet8_space, rng):
    space = resnet8_space
    for _ in range(50):
        values = {knob: rng.choice(allowed) for knob, allowed in space.knobs.items()}
        values |= {knob: None for knob in values if knob.endswith(".pruning_rate")}
        values |= {knob: 2 for knob in values if "harmonics" in knob}
        config = space.decode(values)
        for block in ("conv1", "layer1", "layer2", "layer3"):
            assert config.blocks[block].allocation == values[f"{block}.allocation"]
        assert space.decode(space.encode(config)) == config


def test_the_uncompressed_network_is_in_every_space(space):
    values = space.encode(NetworkConfig(minimum_templates=space.minimum_templates))
    assert space.decode(values) == NetworkConfig(minimum_templates=space.minimum_templates)


def test_choices_are_what_the_layers_can_take(wide_space):
    knobs = wide_space.choices
    assert list(knobs) == ["stem", "body", "body2", "head", "norms_and_biases"]
    stored, running = (
        ("bits", "exponent_block", "exponent_axis", "scale"),
        ("activation_bits", "activation_block", "arithmetic"),
    )
    assert tuple(knobs["head"]) == (*stored, *running)
    assert [knobs["head"][knob] for knob in running] == [(None,), (1,), ("float",)]
    assert knobs["stem"]["harmonics_y"] == knobs["stem"]["harmonics_x"] == tuple(range(1, 8))
    assert knobs["stem"]["groups"] == (1,)
    assert knobs["body"]["harmonics_y"] == (1, 2, 3, 4)
    assert knobs["body"]["harmonics_x"] == tuple(range(1, 8))
    assert knobs["body"]["groups"] == (1,)  # one of its layers is depthwise
    assert knobs["body2"]["groups"] == (1, 2, 4)
    for block, choices in knobs.items():
        assert tuple(choices) == tuple(knob for knob in KNOBS if knob in choices)
        if block not in ("head", "norms_and_biases"):
            assert choices["pruning_rate"][0] is None
        assert None in choices["bits"]
    assert knobs["norms_and_biases"] == {"bits": (8, None)}


def test_norms_and_biases_are_limited_like_other_blocks(wide_space):
    assert wide_space.restrict({"all": {"bits": [3], "groups": [1]}}).choices["norms_and_biases"] == {"bits": (3,)}
    limited = wide_space.restrict({"norms_and_biases": {"bits": [5, "none"]}})
    assert limited.choices == {**wide_space.choices, "norms_and_biases": {"bits": (5, None)}}
    with pytest.raises(UsageError, match=r"cannot take space\.norms_and_biases\.bits = 0: .* from 1 to 16"):
        wide_space.restrict({"norms_and_biases": {"bits": [0]}})
    with pytest.raises(UsageError, match=r"knob \(='groups'\) of space\.norms_and_biases must be one of bits"):
        wide_space.restrict({"norms_and_biases": {"groups": [1]}})


def test_rates_that_leave_the_same_templates_are_offered_once(resnet8_space):
    choices = resnet8_space.choices
    assert choices["conv1"]["pruning_rate"] == (None, 0.25, 0.5)  # 16 filters, at least 8 templates
    assert choices["layer3"]["pruning_rate"] == (None, 0.25, 0.5, 0.75, 0.875)
    few = Space.default(resnet8_space.network, minimum_templates=32)
    assert "pruning_rate" not in few.choices["layer1"]
    assert "groups" not in few.choices["layer1"]


def test_size_is_the_number_of_points(space):
    assert space.size == prod(len(values) for values in space.knobs.values())
    small = space.restrict(
        {"all": {"bits": [8], "pruning_rate": ["none"], "groups": [1], "harmonics": [1, 2], "allocation": "none"}}
    )
    series = sum("basis" in knobs for knobs in small.choices.values())
    assert small.size == 2**series * 4**series


def test_forms_of_a_block_are_all_combinations(resnet8_space):
    configs = list(resnet8_space.block_configs("layer2"))
    assert len(configs) == prod(len(values) for values in resnet8_space.choices["layer2"].values())
    costs = resnet8_space.block_costs("layer2")
    assert set(costs) == set(configs)
    network = resnet8_space.network
    whole = network.cost(NetworkConfig())
    for config in configs[:: len(configs) // 40]:
        alone = network.cost(NetworkConfig(blocks={"layer2": config}))
        dense = network.block_cost("layer2", BlockConfig(), 8)
        difference = (
            costs[config].parameters - dense.parameters,
            costs[config].size_bytes - dense.size_bytes,
            costs[config].macs - dense.macs,
        )
        totals = zip(dataclasses.astuple(alone), dataclasses.astuple(whole), strict=True)
        assert difference == tuple(one - other for one, other in totals)


def test_limits_hold_for_one_block_or_all_and_the_more_special_wins(resnet8_space):
    limits = {
        "layer2": {"bits": [3, "none"], "harmonics_y": [2]},
        "all": {"bits": 8, "harmonics": [1, 3], "pruning_rate": [None, 0.6], "exponent_block": [1, 128]},
    }
    space = resnet8_space.restrict(limits)
    assert space.choices["layer2"]["bits"] == (3, None)
    assert space.choices["layer2"]["harmonics_y"] == (2,)
    assert space.choices["layer2"]["harmonics_x"] == (1, 3)
    assert space.choices["layer1"]["bits"] == (8,)
    assert space.choices["layer1"]["pruning_rate"] == (None, 0.6)
    default = {
        "exponent_axis": ("flat",),
        "scale": (None,),
        "activation_bits": (None,),
        "activation_block": (1,),
        "arithmetic": ("float",),
    }
    assert space.choices["linear"] == {"bits": (8,), "exponent_block": (1, 128), **default}
    assert resnet8_space.choices["layer1"]["bits"] == (1, 2, 3, 4, 6, 8, None)
    assert resnet8_space.restrict({}) == resnet8_space


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"layer9": {"bits": [4]}}, r"block \(='layer9'\) of the space must be one of all, conv1, layer1, "),
        (
            {"layer1": {"bitz": [4]}},
            r"knob \(='bitz'\) of space.layer1 must be one of harmonics, basis.*; did you mean bits\?$",
        ),
        (
            {"all": {"bitz": [4]}},
            r"knob \(='bitz'\) of space.all must be one of harmonics, basis.*; did you mean bits\?$",
        ),
        ({"linear": {"basis": ["cosine"]}}, r"knob \(='basis'\) of space.linear must be one of bits, exponent_block"),
        ({"layer1": {"harmonics": [4]}}, r"space.layer1.harmonics_y \(=\[4\]\) must be a list of values among 1, 2, 3"),
        (
            {"layer1": {"basis": ["sine"]}},
            r"cannot take space.layer1.basis = 'sine': basis \(='sine'\) must be cosine or",
        ),
        ({"layer1": {"bits": []}}, r"layer1.bits \(=\[\]\) must be a list of values among 1, 2, 3, 4, 6, 8, none$"),
        ({"layer1": {"bits": [8, 40]}}, r"cannot take space.layer1.bits = 40: bits \(=40\) must be a whole number"),
        ({"layer1": {"bits": ["8"]}}, r"cannot take space.layer1.bits = '8': bits \(='8'\) must be a whole number"),
        ({"layer1": {"bits": [[8]]}}, r"space.layer1.bits \(=\[\[8\]\]\) must be a list of plain values$"),
        ({"layer1": {"pruning_rate": [1.0]}}, r"cannot take space.layer1.pruning_rate = 1\.0: pruning_rate \(=1\.0\)"),
        ({"layer1": {"pruning_rate": ["x"]}}, r"cannot take space.layer1.pruning_rate = 'x': pruning_rate \(='x'\)"),
        ({"layer1": {"groups": [3]}}, r"cannot take space.layer1.groups = 3: groups \(=3\) must divide the 16 chan"),
        ({"layer1": {"groups": [-1]}}, r"cannot take space.layer1.groups = -1: groups \(=-1\) must be a whole number"),
        ({"layer1": {"exponent_block": [0]}}, r"cannot take space.layer1.exponent_block = 0: exponent_block \(=0\)"),
        (
            {"layer1": {"exponent_axis": ["row"]}},
            r"cannot take space.layer1.exponent_axis = 'row': exponent_axis \(='r",
        ),
        ({"layer1": {"activation_block": [129]}}, r"cannot take space.layer1.activation_block = 129: activation_block"),
        ({"layer1": {"activation_bits": [0]}}, r"cannot take space.layer1.activation_bits = 0: activation_bits \(=0\)"),
        ({"layer1": {"scale": ["float8"]}}, r"cannot take space.layer1.scale = 'float8': scale \(='float8'\) must be"),
        ({"all": {"scale": ["bfloat16"]}}, r"bits \(=8\) of 'conv1' must be at most 7 beside a scale$"),
        ({"layer1": {"arithmetic": ["int4"]}}, r"cannot take space.layer1.arithmetic = 'int4': arithmetic \(='int4'\)"),
        (
            {"all": {"bits": [8], "activation_block": [16]}},
            r"activation_block \(=16\) of 'conv1' must be given together with activation_bits, as bits are those of st",
        ),
        ({"layer1": [4]}, r"space.layer1 \(=\[4\]\) must be a mapping of knobs to lists of values$"),
        ({"all": None}, r"space.all \(=None\) must be a mapping of knobs to lists of values$"),
    ],
)
def test_bad_limits_are_refused(limits, message, resnet8_space):
    with pytest.raises(UsageError, match=message):
        resnet8_space.restrict(limits)


def test_other_sample_points_can_be_asked_for(resnet8_space):
    asked = ["chebyshev@endpoint", "cosine@half_sample", "cosine"]
    space = resnet8_space.restrict({"layer1": {"basis": asked}})
    assert space.choices["layer1"]["basis"] == ("chebyshev@endpoint", "cosine")
    values = {knob: choices[0] for knob, choices in space.knobs.items()} | {"layer1.harmonics_y": 3}
    config = space.decode(values | {"layer1.basis": "chebyshev@endpoint", "layer1.harmonics_x": 1})
    assert config.blocks["layer1"].basis == "chebyshev@endpoint"
    assert space.decode(space.encode(config)) == config


AXES = ["channel", "flat", "filter"]


@pytest.mark.parametrize(
    "limits",
    [
        {"exponent_axis": AXES, "exponent_block": [16, 1, 7]},
        {"exponent_axis": ["channel"], "activation_bits": [8, None], "activation_block": [64, 128]},
        {"exponent_axis": ["flat"], "activation_bits": [3, 7], "activation_block": [16, 1, 128, 5]},
        {"exponent_axis": ["flat"], "activation_bits": [None, 6], "arithmetic": ["int8", "float"]},
        {"exponent_axis": ["flat"], "arithmetic": ["int8"]},
        {"exponent_axis": ["flat", "filter"], "bits": [3, None, 7], "scale": [None, "bfloat16"]},
        {"exponent_axis": ["flat"], "bits": [3], "scale": ["bfloat16"], "exponent_block": [1, 64]},
        {"exponent_axis": ["filter", "flat"], "exponent_block": [4, 128], "bits": [8, 4]},
    ],
)
def test_other_exponents_activations_and_arithmetics_can_be_asked_for(limits, space, draw):
    wider = space.restrict({"all": {"bits": [4, 8, None], **limits}})
    assert wider.choices["conv1" if "conv1" in wider.choices else "stem"]["exponent_axis"] == (
        *limits["exponent_axis"],
    )
    for _ in range(40):
        values = draw(wider)
        config = wider.decode(values)
        assert wider.network.digest(config) == wider.network.digest(spelled(wider, values))
        assert wider.decode(wider.encode(config)) == config


def test_exponents_that_the_space_lacks_are_refused(resnet8_space):
    for knob, value in (("exponent_axis", "channel"), ("activation_bits", 8), ("arithmetic", "int8")):
        asked = BlockConfig(bits=4, exponent_block=16, **{knob: value})
        with pytest.raises(UsageError, match=rf"layer2.{knob} \(={value}\) must be one of (flat|none|float)$"):
            resnet8_space.encode(NetworkConfig(blocks={"layer2": asked}))


def test_restricted_spaces_decode_and_encode_too(resnet8_space, draw):
    space = resnet8_space.restrict(
        {"all": {"basis": ["chebyshev"], "harmonics_y": [2, 3], "bits": [5, 7]}, "layer3": {"pruning_rate": [0.3, 0.6]}}
    )
    for _ in range(200):
        config = space.decode(draw(space))
        assert space.decode(space.encode(config)) == config


def test_any_choices_in_any_order_decode_and_encode(space, draw, rng):
    for _ in range(15):
        limits = {
            block: {knob: rng.sample(values, rng.randint(1, len(values))) for knob, values in knobs.items()}
            for block, knobs in space.choices.items()
        }
        limited = space.restrict(limits)
        for _ in range(3):
            config = limited.decode(draw(limited))
            assert limited.spelled(config) == config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (NetworkConfig(blocks={"layer1": BlockConfig(bits=5)}), r"bits \(=5\) must be one of 1, 2, 3, 4, 6, 8, none$"),
        (NetworkConfig(blocks={"layer1": BlockConfig(pruning_rate=0.3)}), r"layer1.pruning_rate \(=0\.3\) must be one"),
        (NetworkConfig(blocks={"linear": BlockConfig(bits=4, exponent_block=2)}), r"linear.exponent_block \(=2\) must"),
        (NetworkConfig(blocks={"linear": BlockConfig(bits=4)}), r"the config lies outside the space: a knob"),
        (NetworkConfig(blocks={"layer1.0.conv1": BlockConfig(bits=4, exponent_block=16)}), r"the config lies outside"),
        (NetworkConfig(blocks={"nowhere": BlockConfig(bits=4)}), r"block \(='nowhere'\) must be a part of the network"),
    ],
)
def test_configs_outside_the_space_are_refused(config, message, resnet8_space):
    with pytest.raises(UsageError, match=message):
        resnet8_space.encode(config)


def test_a_space_without_the_uncompressed_form_refuses_it(resnet8_space):
    space = resnet8_space.restrict({"layer3": {"bits": [4, 6]}})
    with pytest.raises(UsageError, match=r"layer3.bits \(=None\) must be one of 4, 6$"):
        space.encode(NetworkConfig())
    assert space.decode({}).blocks["layer3"].bits == 4


def test_other_minimum_of_templates_is_another_network(resnet8_space):
    config = NetworkConfig(blocks={"layer3": BlockConfig(pruning_rate=0.875)}, minimum_templates=16)
    with pytest.raises(UsageError, match=r"the config lies outside the space"):
        resnet8_space.encode(config)


def test_transforms_can_be_asked_for(resnet8_space):
    families = ["affine", "scalar", "zero", "rotation"]
    space = resnet8_space.restrict({"layer2": {"transform": families, "pruning_rate": [0.5]}})
    assert space.choices["layer2"]["transform"] == tuple(families)
    for family in families:
        config = space.decode({"layer2.transform": family})
        forms = space.network.block_forms("layer2", config.blocks["layer2"], minimum_templates=8)
        assert {form.transform for form in forms.values()} == {family}
        assert space.encode(config)["layer2.transform"] == family
    with pytest.raises(UsageError, match=r"cannot take space\.layer2\.transform = 'spin': transform"):
        resnet8_space.restrict({"layer2": {"transform": ["spin"]}})
