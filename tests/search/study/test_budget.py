import itertools
import random

import numpy as np
import pytest

from layers import Cost, UsageError
from search.study.budget import Budget, extremes
from spaces import NetworkConfig, Space

SMALL = {
    "all": {
        "basis": ["cosine"],
        "harmonics": [1, 3],
        "pruning_rate": ["none", 0.5],
        "groups": [1],
        "bits": ["none", 4],
    },
    "conv1": {"harmonics": [3], "bits": ["none"]},
    "layer1": {"harmonics_y": [3], "pruning_rate": ["none"]},
}


@pytest.fixture(scope="module")
def small(space: Space) -> Space:
    return space.restrict(SMALL)


def _all_costs(space: Space) -> list[Cost]:
    knobs = space.knobs
    return [
        space.network.cost(space.decode(dict(zip(knobs, values, strict=True))))
        for values in random.Random(0).sample(list(itertools.product(*knobs.values())), 400)
    ]


def test_the_least_of_the_space_is_the_sum_of_the_blocks_least(small: Space) -> None:
    costs = _all_costs(small)
    smallest, quickest = extremes(small, Budget())
    assert small.network.cost(smallest).size_bytes <= min(cost.size_bytes for cost in costs)
    assert small.network.cost(quickest).flops <= min(cost.flops for cost in costs)


def test_what_any_config_reaches_is_found(small: Space) -> None:
    for cost in _all_costs(small)[:60]:
        budget = Budget(max_size=cost.size_bytes, max_flops=cost.flops)
        assert all(budget.fits(small.network.cost(config)) for config in extremes(small, budget))


def test_budgets_say_by_how_much_and_of_many_at_once(small: Space) -> None:
    costs = _all_costs(small)
    budget = Budget(max_size=costs[0].size_bytes, max_flops=costs[1].flops)
    arrays = {name: np.array([float(getattr(cost, name)) for cost in costs]) for name in ("size_bytes", "flops")}
    fits = [budget.fits(cost) for cost in costs]
    assert budget.fits_each(arrays).tolist() == fits
    assert [max(budget.excess(cost).values()) <= 0 for cost in costs] == fits
    assert budget.excess(costs[0])["max_size"] == 0
    assert Budget().excess(costs[0]) == {}


def test_a_budget_that_nothing_meets_says_what_is_least(small: Space) -> None:
    least = small.network.cost(extremes(small, Budget())[0]).size_bytes
    assert extremes(small, Budget(max_size=least)) is not None
    with pytest.raises(
        UsageError, match=rf"no config of the space meets the budget .*: the least size is {least} bytes"
    ):
        extremes(small, Budget(max_size=least - 1))


def test_limits_are_inclusive(network) -> None:  # type: ignore[no-untyped-def]
    cost = network.cost(NetworkConfig())
    assert Budget(max_size=cost.size_bytes, max_flops=cost.flops).fits(cost)
    assert not Budget(max_size=cost.size_bytes - 1).fits(cost)
    assert not Budget(max_flops=cost.flops - 1).fits(cost)


@pytest.mark.parametrize("name", ["max_size", "max_flops"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(UsageError, match=rf"{name} \(=0\) must be at least 1"):
        Budget(**{name: 0})
