"""Small spaces of which every network can be listed."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from layers import Cost
from spaces import BlockConfig, NetworkConfig, Space

Loss = Callable[[str, BlockConfig], float]


@pytest.fixture
def small(space: Space, rng: random.Random) -> Space:
    """Some 1,000 networks: blocks with a few random values of their knobs, the others fixed."""
    fixed = {"basis": ["cosine"], "harmonics": [3], "allocation": ["none"], "pruning_rate": ["none"], "groups": [1]}
    limits: dict[str, Any] = {"all": {**fixed, "bits": [rng.choice(["none", 5])]}}
    for block in rng.sample(list(space.network.blocks), 3):
        if "harmonics_y" in space.choices[block]:
            bits = rng.sample([3, 4, 6, 8, "none"], 2)
            limits[block] = {"harmonics": rng.sample([1, 2, 3], 2), "bits": bits, "groups": [1]}
            limits[block]["pruning_rate"] = ["none", rng.choice([0.5, 0.75])]
    return space.restrict(limits)


@pytest.fixture
def loss(small: Space, rng: random.Random) -> Loss:
    """A random effect for each form, below 0 for some, and the same for many."""
    known: dict[Any, float] = {}

    def effect(block: str, config: BlockConfig) -> float:
        forms = frozenset(small.network.block_forms(block, config, small.minimum_templates).items())
        return known.setdefault((block, forms), rng.choice([rng.uniform(-0.1, 1), round(rng.random(), 1)]))

    return effect


def all_networks(small: Space, loss: Loss) -> list[tuple[Cost, float]]:
    blocks = [[(block, config) for config in small.block_configs(block)] for block in small.choices]
    found = []
    for chosen in itertools.product(*blocks):
        config = NetworkConfig(blocks=dict(chosen), minimum_templates=small.minimum_templates)
        found.append((small.network.cost(config), sum(loss(*pair) for pair in chosen)))
    return found
