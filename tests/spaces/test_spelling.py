"""Stages and layers by name: one network, whatever blocks it is searched by."""

import random
from collections.abc import Callable

import pytest
import torch

from layers import UsageError
from spaces import BlockConfig, Network, NetworkConfig, Space, build_model, presets
from spaces.spelling import in_blocks
from tests.spaces.conftest import WideNet

MODELS = ("wide", "resnet20", "vgg16", "mobilenet_v3_small", "convnext_tiny")
Both = tuple[Space, Space]


@pytest.fixture(scope="module")
def spaces() -> Callable[[str], Both]:
    """The default spaces of a network, by stage and by layer."""
    found: dict[str, Both] = {}

    def both(model: str) -> Both:
        if model not in found:
            side = {"wide": 12, "resnet20": 32, "vgg16": 32}.get(model, 224)
            with torch.device("meta"):
                module = WideNet() if model == "wide" else build_model(model, classes=10, channels=3)
                networks = [Network.from_module(module, (3, side, side), by) for by in ("stage", "layer")]
            found[model] = Space.default(networks[0], 2), Space.default(networks[1], 2)
        return found[model]

    return both


@pytest.mark.parametrize("model", MODELS)
def test_a_config_of_stages_is_in_the_space_of_layers_and_comes_back(
    model: str, spaces: Callable[[str], Both], rng: random.Random
) -> None:
    stages, layers = spaces(model)
    for _ in range(20):
        config = stages.decode({knob: rng.choice(values) for knob, values in stages.knobs.items()})
        spelled = layers.spelled(config)
        assert spelled.blocks.keys() <= layers.choices.keys()
        assert layers.network.digest(spelled) == layers.network.digest(config) == stages.network.digest(spelled)
        assert layers.network.cost(spelled) == stages.network.cost(config)
        back = stages.spelled(spelled)
        assert back.blocks.keys() <= stages.choices.keys()
        assert stages.network.digest(back) == stages.network.digest(config)


@pytest.mark.parametrize("model", MODELS[1:])
def test_presets_are_the_same_by_stage_and_by_layer_and_in_both_spaces(
    model: str, spaces: Callable[[str], Both]
) -> None:
    stages, layers = spaces(model)
    by_stage, by_layer = (presets(model, space.network) for space in (stages, layers))
    assert [row.name for row in by_stage] == [row.name for row in by_layer]
    inside = 0
    for one, other in zip(by_stage, by_layer, strict=True):
        assert stages.network.digest(one.config) == layers.network.digest(other.config)
        try:
            stages.encode(other.config)
        except UsageError:
            continue
        inside += 1
        assert layers.network.digest(layers.spelled(one.config)) == stages.network.digest(one.config)
    assert inside >= 2


def test_layers_of_a_stage_that_differ_are_no_config_of_it(spaces: Callable[[str], Both]) -> None:
    stages, layers = spaces("resnet20")
    alone = NetworkConfig(blocks={"layer1.0.conv1": BlockConfig(bits=4, exponent_block=16)}, minimum_templates=2)
    assert layers.spelled(alone) == alone
    with pytest.raises(UsageError, match=r"^the config lies outside the space: it does not treat .* 'layer1' alike$"):
        stages.encode(alone)
    with pytest.raises(UsageError, match=r"^block \('?=?'nowhere'\) must be|block \(='nowhere'\) must be a part"):
        in_blocks(stages.network, NetworkConfig(blocks={"nowhere": BlockConfig(bits=4)}))


def test_a_name_between_stage_and_layer_stands_for_its_layers(spaces: Callable[[str], Both]) -> None:
    _, layers = spaces("resnet20")
    config = NetworkConfig(blocks={"layer2.0": BlockConfig(bits=4), "norms_and_biases": BlockConfig(bits=8)})
    spelled = in_blocks(layers.network, config)
    inside = [name for name in layers.network.blocks if name.startswith("layer2.0.")]
    assert list(spelled.blocks) == [*inside, "norms_and_biases"]
    assert layers.network.digest(spelled) == layers.network.digest(config)


def test_a_stage_in_a_space_file_stands_for_its_layers(spaces: Callable[[str], Both]) -> None:
    stages, layers = spaces("wide")
    limits = {
        "body": {"bits": [5, 4], "harmonics_y": [2, 4], "harmonics_x": [2, 7], "pruning_rate": [0.5, None]},
        "all": {"bits": [8]},
    }
    by_layer = layers.restrict(limits).choices
    assert stages.restrict({"body": {"bits": [5, 4]}}).choices["body"]["bits"] == (5, 4)
    for name in ("body.0", "body.3", "body.4"):
        assert by_layer[name]["bits"] == (5, 4)
        assert by_layer[name]["pruning_rate"] == (0.5, None)
    assert by_layer["body.0"]["harmonics_y"] == (1,)  # of 1 x 7 taps
    assert by_layer["body.0"]["harmonics_x"] == (2, 7)
    assert by_layer["body.3"]["harmonics_x"] == (2, 4)  # of 4 x 4 taps
    assert "harmonics_x" not in by_layer["body.4"]
    assert by_layer["stem"]["bits"] == by_layer["body2"]["bits"] == (8,)


@pytest.mark.parametrize("order", [list, lambda items: list(reversed(items))])
def test_limits_of_the_smallest_part_win_in_any_order(order: Callable, spaces: Callable[[str], Both]) -> None:
    _, layers = spaces("resnet20")
    limits = {"all": [8], "layer1": [6], "layer1.0": [5], "layer1.0.conv1": [4]}
    chosen = layers.restrict({part: {"bits": bits} for part, bits in order(list(limits.items()))}).choices
    names = ("layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer2.0.conv1")
    assert [chosen[name]["bits"] for name in names] == [(4,), (5,), (6,), (8,)]


def test_a_space_file_names_no_part_of_a_block(spaces: Callable[[str], Both]) -> None:
    stages, layers = spaces("resnet20")
    with pytest.raises(UsageError, match=r"^block \(='layer1.0'\) of the space must be one of all, conv1, layer1, "):
        stages.restrict({"layer1.0": {"bits": [4]}})
    with pytest.raises(UsageError, match=r"^knob \(='basis'\) of space.linear must be one of bits, exponent_block"):
        layers.restrict({"linear": {"basis": ["cosine"]}})


def test_spelling_a_hundred_layers_takes_milliseconds(spaces: Callable[[str], Both], rng: random.Random) -> None:
    """Which is counted in calls, as a clock would tell what else the machine does."""
    import cProfile
    import pstats

    _, layers = spaces("convnext_tiny")
    config = layers.decode({knob: rng.choice(values) for knob, values in layers.knobs.items()})
    layers.spelled(config)
    profile = cProfile.Profile()
    profile.runcall(layers.spelled, config)
    assert pstats.Stats(profile).total_calls < 600 * len(layers.choices)  # type: ignore[attr-defined]
