"""The solver against all networks of small spaces."""

import ctypes
import random

import pytest

from search.optimize import additive_model
from search.optimize.additive_model import AdditiveModel
from search.study.budget import Budget
from spaces import Space
from tests.search.optimize.conftest import Loss, all_networks


def test_a_solution_is_the_best_of_all_networks_within_the_limits(small: Space, loss: Loss, rng: random.Random) -> None:
    networks, model = all_networks(small, loss), AdditiveModel(small, loss)
    for _ in range(12):
        one, other = rng.choice(networks)[0], rng.choice(networks)[0]
        budget = Budget(
            max_size=rng.choice([None, one.size_bytes, one.size_bytes - 1]),
            max_flops=rng.choice([None, other.flops, other.flops - 1]),
        )
        best = min((value for cost, value in networks if budget.fits(cost)), default=None)
        sketch = model.solve(budget)
        if best is None or sketch is None:
            assert best is sketch is None
            continue
        assert sketch.loss_increase == pytest.approx(best, abs=1e-6)
        assert budget.fits(sketch.cost)
        assert sketch.cost == small.network.cost(sketch.config)
        assert sketch.config == small.network.canonical(sketch.config)
        assert small.encode(sketch.config)


def test_a_solution_that_breaks_a_limit_is_left_for_the_next(
    small: Space, loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The solver is told of no limit, as its tolerance may hide one."""
    networks = sorted(all_networks(small, loss), key=lambda network: network[1])
    first = {cost: rank for rank, (cost, _) in reversed(list(enumerate(networks)))}

    def better(limit: int) -> int:
        return min((rank for cost, rank in first.items() if cost.size_bytes < limit), default=len(networks))

    limit = min((cost.size_bytes for cost, _ in networks[:50] if better(cost.size_bytes)), key=better)
    model = AdditiveModel(small, loss)
    monkeypatch.setattr(model, "_limits", lambda budget: iter(()))
    sketch = model.solve(Budget(max_size=limit - 1))
    expected = networks[better(limit)][1] if better(limit) < len(networks) else None
    assert (None if sketch is None else sketch.loss_increase) == pytest.approx(expected, abs=1e-6)


def test_what_the_solver_prints_by_itself_is_no_answer(capfd: pytest.CaptureFixture[str]) -> None:
    with additive_model._quiet():
        ctypes.CDLL(None).puts(b"HiGHS says something")
    ctypes.CDLL(None).puts(b"others")
    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr().out == "others\n"
