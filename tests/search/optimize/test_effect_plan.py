from dataclasses import replace

import pytest

from search.optimize.effect_plan import effect_plan
from spaces import BlockConfig, Network, NetworkConfig, Space, build_model


@pytest.fixture(scope="module")
def space() -> Space:
    return Space.default(Network.from_module(build_model("resnet8", classes=10, channels=1), (1, 8, 8)))


def test_every_block_is_told_of_first_by_half_of_its_filters_and_harmonics_and_few_bits(space: Space) -> None:
    plan = list(effect_plan(space))
    turns = [[config for name, config in plan if name == block] for block in space.choices]
    fewest = min(value for value in space.choices["layer1"]["bits"] if value)
    few, half = BlockConfig(bits=fewest, exponent_block=16), BlockConfig(basis="cosine", harmonics=(2, 2))
    rates = BlockConfig(pruning_rate=0.5, groups=1, transform="scalar")
    for configs in turns[1:4]:
        told = [replace(rates, groups=None, transform=None), replace(half, allocation="filter"), few, half]
        assert configs[:4] == told
        assert replace(half, allocation="filter", bits=fewest, exponent_block=16) in configs[:12]
    assert [name for name, _ in plan[: len(space.choices)]] == list(space.choices)
    assert [config.bits for config in turns[-1]] == [8]


def test_no_form_is_planned_twice_and_all_are_canonical_and_single_parts_complete(space: Space) -> None:
    network, plan = space.network, list(effect_plan(space))
    digests = [network.digest(NetworkConfig(blocks={block: config})) for block, config in plan]
    assert len(set(digests)) == len(digests)
    assert all(network.canonical(NetworkConfig(blocks=(own := {b: c}))).blocks == own for b, c in plan)
    singles = {
        network.digest(NetworkConfig(blocks={block: config}))
        for block in space.choices
        for config in space.block_configs(block)
        if sum(map(bool, (config.bits, config.pruning_rate, config.harmonics not in (None, (3, 3))))) == 1
    }
    assert singles - {network.digest(NetworkConfig())} <= set(digests)


def test_a_narrow_space_is_planned_as_narrow_as_it_is(space: Space) -> None:
    narrow = space.restrict(
        {
            "all": {"bits": [3, None], "harmonics": [3], "allocation": [None], "pruning_rate": [None]},
            "layer2": {"allocation": ["filter"], "harmonics": [1, 3], "activation_bits": [None, 8, 4]},
            "layer3": {"arithmetic": ["float", "int8"], "bits": [None]},
        }
    )
    plan = list(effect_plan(narrow))
    assert {name for name, config in plan if config.harmonics} == {"layer2"}
    assert [config for name, config in plan if name == "layer3"] == [BlockConfig(arithmetic="int8")]
    inputs = [config.activation_bits for name, config in plan if name == "layer2" and config.activation_bits]
    assert inputs == [4, 8]
