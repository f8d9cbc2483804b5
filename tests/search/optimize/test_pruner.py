"""Which trials are given up: the rule itself, and how often it is wrong."""

from itertools import pairwise

import numpy as np
import pytest

from layers import UsageError
from results.objectives import parse_objectives
from search.optimize.pruner import ConformalPruner

OBJECTIVES = parse_objectives(("val_top1", "size_bytes", "flops"), score_name="val_top1")


def _trial(rng: np.random.Generator) -> tuple[dict[str, float], list[float], np.ndarray]:
    """Costs, scores and features of a trial: the rung tells the end but for noise, and so do the features."""
    features = rng.uniform(0, 1, 4)
    final = 0.8 + 0.15 * features.mean() + rng.normal(0, 0.005)
    start = final - 0.05 + rng.normal(0, 0.02)
    costs = {"size_bytes": float(rng.integers(1, 50)), "flops": float(rng.integers(1, 50))}
    return costs, [start, final - 0.01 + rng.normal(0, 0.005), final], features


def _learnt(rng: np.random.Generator, trials: int, miss_rate: float) -> ConformalPruner:
    pruner = ConformalPruner(OBJECTIVES, miss_rate=miss_rate)
    for _ in range(trials):
        pruner.observe(*_trial(rng))
    return pruner


def test_final_scores_end_above_their_optimistic_forecast_as_seldom_as_was_asked(np_rng: np.random.Generator) -> None:
    above = []
    for _ in range(30):
        pruner = _learnt(np_rng, 40, 0.2)
        for _ in range(20):
            _, scores, features = _trial(np_rng)
            forecast = pruner.forecast(scores[:1], features)
            assert forecast is not None
            assert forecast[0] <= forecast[1]
            above.append(scores[-1] > forecast[1])
    assert 0.08 < np.mean(above) < 0.3  # 0.2 in the limit; six deviations either way, judges being 30


def test_a_better_start_is_never_forecast_to_end_worse(np_rng: np.random.Generator) -> None:
    """Where both tellers say nearly the same, plain least squares would often weigh one of them negatively."""
    for _ in range(20):
        pruner = _learnt(np_rng, 10, 0.1)
        _, _, features = _trial(np_rng)
        forecasts = [pruner.forecast([accuracy], features) for accuracy in (0.6, 0.7, 0.8, 0.9)]
        for one, other in pairwise(forecasts):
            assert one[0] <= other[0] + 1e-9
            assert one[1] <= other[1] + 1e-9


@pytest.mark.parametrize("start", [0.0, 1.0, None])
def test_a_config_unlike_any_seen_is_forecast_within_what_was_seen(start: float | None) -> None:
    """Whatever its score so far is, nothing or all; after seed 15594 features were given a weight of six."""
    rng = np.random.default_rng(15594)
    for _ in range(40):
        pruner, curves = ConformalPruner(OBJECTIVES, miss_rate=0.1), []
        for _ in range(12):
            costs, scores, features = _trial(rng)
            pruner.observe(costs, scores, features)
            curves.append(scores)
        ends = [scores[-1] for scores in curves]
        for scores in curves:
            now = scores[0] if start is None else start
            expected, optimistic = pruner.forecast([now], rng.choice([-1e3, 1e3], 4))
            assert min(ends) - 1e-9 <= expected <= max(ends) + 1e-9
            assert expected <= optimistic


def test_a_trial_is_given_up_only_where_one_that_costs_no_more_is_out_of_its_reach(np_rng: np.random.Generator) -> None:
    pruner, finished = ConformalPruner(OBJECTIVES, miss_rate=0.1), []
    given_up = 0
    for _ in range(300):
        costs, scores, features = _trial(np_rng)
        if pruner.should_prune(costs, scores[:2], features):
            given_up += 1
            best = pruner.forecast(scores[:2], features)[1]
            assert any(
                other["size_bytes"] <= costs["size_bytes"] and other["flops"] <= costs["flops"] and top1 >= best
                for other, top1 in finished
            )
            continue
        pruner.observe(costs, scores, features)
        finished.append((costs, scores[-1]))
    assert given_up > 50


def test_nothing_is_given_up_before_enough_trials_have_finished(np_rng: np.random.Generator) -> None:
    pruner = _learnt(np_rng, 8, 0.1)
    _, scores, features = _trial(np_rng)
    assert pruner.forecast(scores[:1], features) is None
    assert not pruner.should_prune({"size_bytes": 1e9, "flops": 1e9}, scores[:1], features)
    pruner.observe(*_trial(np_rng))
    assert pruner.forecast(scores[:1], features) is not None


@pytest.mark.parametrize("names", [("val_top1", "latency_ms"), ("val_top1", "size_bytes", "latency_b64_ms")])
def test_what_costs_nobody_knows_yet_is_never_given_up(names: tuple[str, ...], np_rng: np.random.Generator) -> None:
    pruner = ConformalPruner(parse_objectives(names, score_name="val_top1"), miss_rate=0.1)
    for _ in range(30):
        costs, scores, features = _trial(np_rng)
        pruner.observe({**costs, "latency_ms": 1.0, "latency_b64_ms": 9.0}, scores, features)
    assert not pruner.should_prune({"size_bytes": 1e9}, [0.0], np.zeros(4))


def test_with_a_miss_rate_of_0_every_trial_runs_to_its_end(np_rng: np.random.Generator) -> None:
    pruner = ConformalPruner(OBJECTIVES, miss_rate=0)
    for _ in range(30):
        pruner.observe(*_trial(np_rng))
    assert not pruner.should_prune({"size_bytes": 1e9, "flops": 1e9}, [0.0], np.zeros(4))


@pytest.mark.parametrize("rate", [1, -0.5, float("nan")])
def test_nonsense_is_named(rate: float) -> None:
    with pytest.raises(UsageError, match=rf"miss_rate \(={rate}\) must be at least 0 and below 1"):
        ConformalPruner(OBJECTIVES, miss_rate=rate)
