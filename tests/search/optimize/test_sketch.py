"""The few networks of a predicted front."""

import random
from typing import Any

import pytest

from layers import UsageError
from search.optimize.sketch import sketch_front
from search.study.budget import Budget, extremes
from spaces import NetworkConfig, Space
from tests.search.optimize.conftest import Loss, all_networks


def _front(space: Space, loss: Loss, budget: Budget | None = None, **others: Any) -> list[Any]:
    return sketch_front(space, loss, budget or Budget(), **{"points": 6, "worst": 100.0, **others})


def test_no_network_within_the_budget_beats_a_chosen_one(small: Space, loss: Loss, rng: random.Random) -> None:
    networks = all_networks(small, loss)
    middle = rng.choice(networks)[0]
    budget = rng.choice([Budget(), Budget(max_size=middle.size_bytes), Budget(max_flops=middle.flops)])
    chosen = _front(small, loss, budget)
    costs = [small.network.cost(sketch.config) for sketch in chosen]
    assert [sketch.cost for sketch in chosen] == costs
    assert all(map(budget.fits, costs))
    assert len({small.network.digest(sketch.config) for sketch in chosen}) == len(chosen) > 0
    assert NetworkConfig(minimum_templates=small.minimum_templates) not in [sketch.config for sketch in chosen]
    for sketch in chosen:
        limits = Budget(max_size=sketch.cost.size_bytes, max_flops=sketch.cost.flops)
        best = min(value for cost, value in networks if limits.fits(cost))
        assert sketch.loss_increase == pytest.approx(best, abs=1e-6)


def test_more_points_begin_with_fewer(small: Space, loss: Loss) -> None:
    some, more = _front(small, loss, points=3), _front(small, loss, points=12)
    assert more[: len(some)] == some
    assert len({sketch.cost for sketch in more}) <= 12


def test_those_that_are_predicted_to_be_too_bad_come_last(small: Space, loss: Loss) -> None:
    every = _front(small, loss, points=30)
    worst = sorted(sketch.loss_increase for sketch in every)[len(every) // 2]
    good = [sketch.loss_increase <= worst for sketch in _front(small, loss, points=30, worst=worst)]
    assert good == sorted(good, reverse=True)


def test_compute_that_is_no_objective_has_no_limit_of_its_own(small: Space, loss: Loss) -> None:
    networks = all_networks(small, loss)
    for sketch in _front(small, loss, costs=["size_bytes"]):
        best = min(value for cost, value in networks if cost.size_bytes <= sketch.cost.size_bytes)
        assert sketch.loss_increase == pytest.approx(best, abs=1e-6)


def test_limits_that_no_network_meets_name_the_least_costs(small: Space, loss: Loss) -> None:
    least = small.network.cost(extremes(small, Budget())[0]).size_bytes
    with pytest.raises(UsageError, match=rf"no config of the space meets the budget .*: the least size is {least} byt"):
        _front(small, loss, Budget(max_size=least - 1))
