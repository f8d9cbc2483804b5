"""What a search tries first: legal in any space, canonical, each network once."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import nn

from search.optimize.initial import first_configs, ladder
from search.optimize.nearest import nearest
from search.study.budget import Budget, extremes
from spaces import BlockConfig, Network, NetworkConfig, Space, build_model
from spaces.blocks import Granularity


class Perceptron(nn.Module):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(12, 20)
        self.out = nn.Linear(20, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.out(torch.relu(self.hidden(x.flatten(1))))
        return logits


@pytest.fixture(scope="module")
def made() -> Callable[[str, Granularity], Space]:
    found: dict[tuple[str, str], Space] = {}

    def make(model: str, granularity: Granularity) -> Space:
        if (model, granularity) not in found:
            side = {"perceptron": 2, "resnet20": 32, "vgg16": 32}.get(model, 224)
            with torch.device("meta"):
                module = Perceptron() if model == "perceptron" else build_model(model, classes=10, channels=3)
                found[model, granularity] = Space.default(Network.from_module(module, (3, side, side), granularity))
        return found[model, granularity]

    return make


def test_what_comes_first_is_canonical_and_the_uncompressed_network_before_all(space: Space) -> None:
    limited = space.restrict({"all": {"harmonics": [2, 3], "groups": [1]}})
    limits = extremes(limited, Budget())
    assert any(limited.network.canonical(config) != config for config in limits)
    first = first_configs(limited, "resnet8", limits, forecast=False).at_once
    assert first[0] == NetworkConfig(minimum_templates=limited.minimum_templates)
    assert [limited.network.digest(config) for config in first[1:3]] == [limited.network.digest(c) for c in limits]
    assert all(limited.network.canonical(config) == config for config in first)
    assert 3 < len(first) <= 7


def test_with_a_forecast_all_that_is_known_is_offered_and_the_original_comes_at_once(space: Space) -> None:
    limits, sketch = extremes(space, Budget()), NetworkConfig(blocks={"linear": BlockConfig(bits=6)})
    first = first_configs(space, "resnet8", limits, forecast=True, sketches=[sketch])
    rungs = [rung.config for rung in ladder(space, "resnet8")]
    assert first.at_once == [NetworkConfig(minimum_templates=space.minimum_templates)]
    assert first.offered == [sketch, *rungs, *map(space.network.canonical, limits)]


@pytest.mark.parametrize("granularity", ["stage", "layer"])
def test_the_papers_rows_are_tried_in_the_blocks_of_the_space(
    granularity: Granularity, made: Callable[[str, Granularity], Space]
) -> None:
    space = made("resnet20", granularity)
    first = first_configs(space, "resnet20", extremes(space, Budget()), forecast=False).at_once
    assert len(first) == 6
    assert all(config.blocks.keys() <= space.choices.keys() for config in first)


@pytest.mark.parametrize("granularity", ["stage", "layer"])
@pytest.mark.parametrize(
    ("model", "count"), [("resnet20", 25), ("vgg16", 34), ("mobilenet_v3_small", 30), ("perceptron", 6)]
)
def test_the_ladder_has_networks_of_the_space_each_once(
    model: str, count: int, granularity: Granularity, made: Callable[[str, Granularity], Space]
) -> None:
    space = made(model, granularity)
    rungs = ladder(space, model)
    digests = [space.network.digest(rung.config) for rung in rungs]
    assert len(rungs) == len(set(digests)) == len({rung.name for rung in rungs}) == count
    assert space.network.digest(NetworkConfig()) not in digests
    assert all(space.spelled(rung.config) == rung.config for rung in rungs)


def test_the_ladder_is_what_a_person_would_write(made: Callable[[str, Granularity], Space]) -> None:
    bits = BlockConfig(bits=2, exponent_block=16)
    norms = {"norms_and_biases": BlockConfig(bits=8)}
    series = BlockConfig(basis="cosine", harmonics=(2, 2), allocation="filter", bits=2, exponent_block=16)
    stages = ("conv1", "layer1", "layer2", "layer3")
    written = {
        "K - 1 harmonics per filter, 2 bits": dict.fromkeys(stages, series) | {"linear": bits} | norms,
        "2 bits": dict.fromkeys((*stages, "linear"), bits) | norms,
        "cos-3,3,3,2 per filter, 2 bits": dict.fromkeys((*stages, "linear"), bits) | {"layer3": series} | norms,
        "rate 0.75": {stage: BlockConfig(pruning_rate=0.75, groups=1) for stage in stages},
        "cos-3,3,3,2": {"layer3": BlockConfig(basis="cosine", harmonics=(2, 2))},
    }
    for granularity in ("stage", "layer"):
        space = made("resnet20", granularity)
        rungs = {rung.name: space.network.digest(rung.config) for rung in ladder(space, "resnet20")}
        for name, blocks in written.items():
            assert rungs[name] == space.network.digest(NetworkConfig(blocks=blocks)), name


@pytest.mark.parametrize("granularity", ["stage", "layer"])
def test_in_a_restricted_space_the_nearest_choices_are_taken(
    granularity: Granularity, made: Callable[[str, Granularity], Space], rng: random.Random
) -> None:
    space = made("resnet20", granularity)
    few = space.restrict({"layer1": {"bits": [6, 5]}, "layer3": {"harmonics": [3]}, "all": {"pruning_rate": [None]}})
    rungs = {rung.name: few.encode(rung.config) for rung in ladder(few, "resnet20")}
    layer = "" if granularity == "stage" else ".0.conv1"
    bits = {name: rungs[name][f"layer1{layer}.bits"] for name in ("8 bits", "6 bits", "4 bits", "3 bits")}
    assert bits == {"8 bits": 6, "6 bits": 6, "4 bits": 5, "3 bits": 5}
    assert rungs["K - 1 harmonics per filter, 2 bits"][f"layer2{layer}.harmonics_y"] == 2
    assert "rate 0.5, 3 bits" not in rungs  # without rates it is the network of 3 bits
    for _ in range(5):
        limits = {
            block: {knob: rng.sample(values, rng.randint(1, len(values))) for knob, values in knobs.items()}
            for block, knobs in space.choices.items()
        }
        small = space.restrict(limits)
        for rung in ladder(small, "resnet20"):
            assert small.spelled(rung.config) == rung.config


def test_what_the_space_has_is_nearest_to_itself(space: Space, rng: random.Random) -> None:
    for _ in range(50):
        config = space.decode({knob: rng.choice(values) for knob, values in space.knobs.items()})
        assert space.network.digest(nearest(space, config)) == space.network.digest(config)


@pytest.mark.parametrize(
    ("knob", "allowed", "asked", "expected"),
    [
        ("bits", [4, 8], 3, 4),
        ("bits", [4, 8], None, 8),
        ("bits", [4, None], 11, 4),  # none counts as 32
        ("bits", [4, None], 12, None),
        ("pruning_rate", [0.25, 0.75], 0.5, 0.25),  # as near, and compresses less
        ("pruning_rate", [0.25, 0.75], None, 0.25),
        ("harmonics", [1, 3], 2, 3),
        ("basis", ["chebyshev"], "cosine", "chebyshev"),
    ],
)
def test_nearest_is_by_the_size_of_numbers(knob: str, allowed: list, asked: object, expected: object, space: Space):
    pairs = {
        "harmonics": {"harmonics": (asked, asked), "basis": "cosine"},
        "basis": {"basis": asked, "harmonics": (1, 2)},
    }
    config = NetworkConfig(blocks={"layer2": BlockConfig(**pairs.get(knob, {knob: asked}))})
    limited = space.restrict({"layer2": {knob: allowed}})
    found = limited.encode(nearest(limited, config))
    assert found["layer2.harmonics_y" if knob == "harmonics" else f"layer2.{knob}"] == expected
