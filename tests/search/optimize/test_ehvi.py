"""What promises most: against brute force, and on spaces where the answer is known."""

import itertools
from typing import Any

import moocore
import numpy as np
import optuna
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor

from results.objectives import parse_objectives
from search.optimize.candidates import Candidates, Floats, Points
from search.optimize.ehvi import _Gain
from search.optimize.forecast import Forecast
from search.optimize.history import History
from search.optimize.improvement import expected_hypervolume_improvement
from search.optimize.sampler import ConfigSampler, Observation
from search.optimize.surrogate import Surrogate, sampling_deviation, to_log_error, to_score
from search.study.budget import Budget
from spaces import BlockConfig, NetworkConfig, Space

OBJECTIVES = parse_objectives(("val_top1", "size_bytes", "flops"), score_name="val_top1")
SMALL = {
    "all": {"basis": ["cosine"], "harmonics": [3], "allocation": [None], "pruning_rate": [None], "bits": [None]},
    "layer2": {"harmonics_y": [1, 2, 3], "bits": [4, None]},
    "layer3": {"harmonics_y": [1, 2, 3], "pruning_rate": [None, 0.5], "bits": [4, 8, None]},
}


@pytest.fixture(scope="module")
def candidates(space: Space) -> Candidates:
    return Candidates(space.restrict(SMALL))


def _accuracy(config: NetworkConfig) -> float:
    """Made up: what is cheaper is less accurate, and more so together."""
    error = 0.01
    for block in config.blocks.values():
        error += 0.006 * (3 - (block.harmonics or (3, 3))[0]) + 0.02 * (block.pruning_rate or 0)
        error += 0.0 if block.bits is None else 0.16 / 2**block.bits
    return 1 - error * (1 + 2 * error)


def test_points_know_what_configs_know(candidates: Candidates) -> None:
    found, network = candidates.all_points, candidates.space.network
    configs = [candidates.config(point) for point in found.indices]
    digests = {network.digest(config) for config in configs}
    assert len(digests) == len(configs) == 216
    for config, size, flops in zip(configs, found.costs["size_bytes"], found.costs["flops"], strict=True):
        cost = network.cost(config)
        assert (cost.size_bytes, cost.flops) == (size, flops)
    for point, config in zip(found.indices, configs, strict=True):
        assert candidates.config(candidates.point(config)) == config == candidates.config(point)


def test_points_of_one_network_are_told_by_their_identity(space: Space) -> None:
    """Where no filter is rebuilt, the number of groups says nothing."""
    candidates = Candidates(space.restrict({**SMALL, "layer3": {"pruning_rate": [None, 0.5], "groups": [1, 2]}}))
    choices = itertools.product(*(range(len(values)) for values in candidates.knobs.values()))
    every = candidates.describe(np.array(list(choices)))
    digests = [candidates.space.network.digest(candidates.config(point)) for point in every.indices]
    alike = {tuple(row): digest for row, digest in zip(every.identity, digests, strict=True)}
    assert len(set(digests)) == len(alike) == len(candidates.all_points.indices) < len(digests)
    assert [alike[tuple(row)] for row in every.identity] == digests


@pytest.mark.parametrize("costs", [1, 2, 3])
def test_the_expected_gain_is_the_mean_gain_of_what_may_come(costs: int, np_rng: np.random.Generator) -> None:
    losses = np_rng.uniform(0, 1.2, (12, costs + 1))
    certain, uncertain = np_rng.uniform(0, 1.1, (20, costs)), np_rng.uniform(0, 1.1, (20, 4))
    weights = np_rng.dirichlet(np.ones(4))
    reference = np.ones(costs + 1)

    def volume(points: np.ndarray) -> float:
        inside = points[(points < 1).all(axis=1)]
        return float(moocore.hypervolume(inside, ref=reference)) if len(inside) else 0.0

    expected = [
        sum(
            weight * (volume(np.vstack([losses, [loss, *cost]])) - volume(losses))
            for loss, weight in zip(row, weights, strict=True)
        )
        for row, cost in zip(uncertain, certain, strict=True)
    ]
    assert np.allclose(expected_hypervolume_improvement(losses, uncertain, certain, weights), expected, atol=1e-12)
    alone = expected_hypervolume_improvement(losses[:0], uncertain, certain, weights)
    assert np.allclose(alone, (np.clip(1 - uncertain, 0, None) @ weights) * np.clip(1 - certain, 0, None).prod(axis=1))


def test_scores_and_log_errors_are_inverse() -> None:
    scores = np.linspace(0, 1, 50)
    assert np.allclose(to_score(to_log_error(scores)), scores)
    assert (np.diff(to_log_error(scores)) < 0).all()


def test_the_surrogate_forecasts_what_it_has_not_seen(candidates: Candidates, np_rng: np.random.Generator) -> None:
    every = candidates.all_points
    truth = np.array([_accuracy(candidates.config(point)) for point in every.indices])
    rows = np_rng.permutation(len(truth))
    seen, unseen = rows[:40], rows[40:]
    surrogate = Surrogate(every.features[seen], truth[seen], np.zeros(40))
    mean, deviation = surrogate.predict(every.features[unseen])
    missed = np.abs(to_score(mean) - truth[unseen])
    assert missed.mean() < truth.std() / 4
    assert (deviation > 0).all()


@pytest.mark.parametrize("forecast", [None, Forecast(lambda *_: 0.1, 0.9)])
@pytest.mark.parametrize("trials", [3, 15])
def test_the_process_is_that_of_scikit_learn(
    candidates: Candidates, np_rng: np.random.Generator, trials: int, forecast: Forecast | None
) -> None:
    """And what is left out in turn is forecast by the same process fitted without it."""
    points = Candidates(candidates.space, forecast).all_points.features
    inputs, new = points[np_rng.permutation(len(points))[:trials]], points[:40]
    scores, variance = np_rng.uniform(0.8, 0.99, trials), np_rng.choice([0.0, 0.1], trials)
    surrogate = Surrogate(inputs, scores, variance, forecast)
    slopes = np.zeros(inputs.shape[1])
    slopes[: 0 if forecast is None else len(forecast.slopes)] = () if forecast is None else forecast.slopes
    base = 0.0 if forecast is None else to_log_error(np.array(0.9))

    def process(kept: Any) -> Any:
        noise = 1e-8 + variance[kept] / surrogate._unit**2
        fitted = GaussianProcessRegressor(surrogate.kernel, alpha=noise, optimizer=None)
        residuals = to_log_error(scores[kept]) - base - inputs[kept] @ slopes
        return fitted.fit(surrogate._scaled(inputs[kept]), (residuals - surrogate._offset) / surrogate._unit)

    mean, deviation = process(np.arange(trials)).predict(surrogate._scaled(new), return_std=True)
    expected = mean * surrogate._unit + surrogate._offset + base + new @ slopes
    noise = surrogate.kernel.k2.noise_level
    told, unsure = surrogate.predict(new)
    assert told == pytest.approx(expected, abs=1e-6)
    assert surrogate.mean(new) == pytest.approx(expected, abs=1e-6)
    assert unsure == pytest.approx(np.sqrt(np.maximum(deviation**2 - noise, 1e-8)) * surrogate._unit, rel=1e-4)
    for left in range(trials):
        alone = process(np.arange(trials) != left).predict(surrogate._scaled(inputs[[left]])).item()
        expected = alone * surrogate._unit + surrogate._offset + base + inputs[left] @ slopes
        assert surrogate.left_out()[left] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("forecast", [None, Forecast(lambda *_: 0.1, 0.9)])
def test_what_is_under_way_makes_forecasts_surer_and_moves_none(
    candidates: Candidates, np_rng: np.random.Generator, forecast: Forecast | None
) -> None:
    """As if it had been measured to be what is forecast."""
    points = Candidates(candidates.space, forecast).all_points.features
    order = np_rng.permutation(len(points))
    seen, underway, new = points[order[:12]], points[order[12:20]], points[order[20:]]
    surrogate = Surrogate(seen, np_rng.uniform(0.8, 0.99, 12), np.zeros(12), forecast)
    mean, before = surrogate.predict(new)
    surrogate.await_scores(underway)
    same, after = surrogate.predict(new)
    assert same == pytest.approx(mean)
    inputs = surrogate._scaled(np.vstack([seen, underway]))
    process = GaussianProcessRegressor(surrogate.kernel, alpha=1e-8, optimizer=None).fit(inputs, np.zeros(20))
    _, expected = process.predict(surrogate._scaled(new), return_std=True)
    noise = surrogate.kernel.k2.noise_level
    assert after == pytest.approx(np.sqrt(np.maximum(expected**2 - noise, 1e-8)) * surrogate._unit, rel=1e-4)
    assert (after <= before + 1e-9).all()
    assert after.mean() < before.mean()


def _search(candidates: Candidates, sampler: str, trials: int, budget: Budget | None = None) -> list[NetworkConfig]:
    drawing = ConfigSampler(candidates, OBJECTIVES, sampler=sampler, seed=3, budget=budget)
    drawn = []
    for number in range(trials):
        handle, point = drawing.ask(number)
        config = candidates.config(point)
        drawn.append(config)
        cost = candidates.space.network.cost(config)
        accuracy = _accuracy(config)
        drawing.tell(handle, Observation(values=[accuracy, cost.size_bytes, cost.flops]))
    return drawn


def test_the_front_is_found_in_fewer_trials_than_at_random(candidates: Candidates) -> None:
    base = candidates.uncompressed

    def volume(configs: list[NetworkConfig]) -> float:
        costs = [candidates.space.network.cost(config) for config in configs]
        points = [
            [1 - _accuracy(config), cost.size_bytes / base["size_bytes"], cost.flops / base["flops"]]
            for config, cost in zip(configs, costs, strict=True)
        ]
        inside = [point for point in points if max(point) < 1]
        return float(moocore.hypervolume(np.array(inside), ref=np.ones(3)))

    whole = volume([candidates.config(point) for point in candidates.all_points.indices])
    ours, blind = (whole - volume(_search(candidates, name, 30)) for name in ("ehvi", "random"))
    assert ours < blind / 2
    assert ours < 0.01 * whole


def test_nothing_is_drawn_twice_or_over_budget_until_nothing_is_left(candidates: Candidates) -> None:
    sizes = np.sort(candidates.all_points.costs["size_bytes"])
    budget = Budget(max_size=int(sizes[30]))
    fitting = int((sizes <= sizes[30]).sum())
    drawn = _search(candidates, "ehvi", fitting, budget)
    network = candidates.space.network
    assert len({network.digest(config) for config in drawn}) == fitting
    assert all(budget.fits(network.cost(config)) for config in drawn)


def test_large_spaces_are_searched_near_the_front(space: Space) -> None:
    candidates = Candidates(space)
    assert candidates.size > 10**12
    drawn = _search(candidates, "ehvi", 14)
    assert len({space.network.digest(config) for config in drawn}) == 14


def test_trials_under_way_are_not_drawn_again(candidates: Candidates) -> None:
    drawing = ConfigSampler(candidates, OBJECTIVES, sampler="ehvi", seed=0)
    for config in _search(candidates, "random", 10):
        cost = candidates.space.network.cost(config)
        told = Observation(values=[_accuracy(config), cost.size_bytes, cost.flops])
        drawing.replay(candidates.point(config), told)
    drawn = [candidates.config(drawing.ask(number)[1]) for number in range(10, 16)]
    digests = [candidates.space.network.digest(config) for config in drawn]
    assert len(set(digests)) == 6


def test_latency_is_forecast_from_the_trials_that_are_most_alike(candidates: Candidates) -> None:
    objectives = parse_objectives(("val_top1", "latency_ms"), score_name="val_top1")
    drawing = ConfigSampler(candidates, objectives, sampler="ehvi", seed=0)
    for number in range(16):
        handle, point = drawing.ask(number)
        config = candidates.config(point)
        cost = candidates.space.network.cost(config)
        drawing.tell(handle, Observation(values=[_accuracy(config), cost.flops / 1e6]))
    assert len(drawing._study.best_trials) >= 2


def test_optuna_sees_the_study_as_ours_does(candidates: Candidates) -> None:
    drawing = ConfigSampler(candidates, OBJECTIVES, sampler="ehvi", seed=0)
    for number, told in enumerate(
        (Observation(values=[0.9, 1e4, 1e6]), Observation(forecast=0.7), Observation(), Observation(excess={"a": 0.5}))
    ):
        drawing.tell(drawing.ask(number)[0], told)
    states = [trial.state for trial in drawing._study.trials]
    complete, pruned, fail = (
        optuna.trial.TrialState.COMPLETE,
        optuna.trial.TrialState.PRUNED,
        optuna.trial.TrialState.FAIL,
    )
    assert states == [complete, pruned, fail, pruned]
    assert drawing._study.trials[3].constraints == {"a": 0.5}
    assert [trial.number for trial in drawing._study.best_trials] == [0]


def test_errors_that_leave_a_network_usable_take_half_of_the_scale(space: Space) -> None:
    candidates = Candidates(space, Forecast(lambda block, config: 0.0, reference=0.9))
    gain = _Gain(candidates, History(candidates, ["score", "size_bytes", "flops"], 0))
    weighed = gain._weighed(np.array([0.0, 0.15, 0.3, 0.65, 1.0]))  # usable up to 2 x 0.1 + 0.1
    assert weighed == pytest.approx([0.0, 0.325, 0.65, 0.825, 1.0])


def test_a_share_of_few_images_is_uncertain(np_rng: np.random.Generator) -> None:
    for error, images in ((0.1, 400), (0.3, 2000), (0.02, 5000)):
        measured = to_log_error(1 - np_rng.binomial(images, error, size=20_000) / images)
        told = sampling_deviation(to_log_error(np.array([1 - error])), images)
        assert told.item() == pytest.approx(measured.std(), rel=0.1)


def test_the_fewer_images_the_more_a_point_beside_the_front_promises(candidates: Candidates) -> None:
    history = History(candidates, ["score", "size_bytes", "flops"], 0)
    for config in _search(candidates, "random", 25):
        cost = candidates.space.network.cost(config)
        history.end(history.add(candidates.point(config)), [_accuracy(config), cost.size_bytes, cost.flops])
    points = candidates.all_points.take(history.is_new(candidates.all_points))
    exact, *sampled = (_Gain(candidates, history, images)(points) for images in (None, 10_000, 100))
    least = np.argsort(exact)[: len(exact) // 2]
    assert exact[least].mean() < sampled[0][least].mean() < sampled[1][least].mean()


def test_what_is_offered_is_looked_at_until_it_is_drawn(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a space that is too large to look at each point."""
    candidates = Candidates(space, Forecast(lambda block, config: 0.1, reference=0.95))
    every = BlockConfig(basis="cosine", harmonics=(2, 2), allocation="filter", bits=4, exponent_block=16)
    wanted = space.network.canonical(NetworkConfig(blocks=dict.fromkeys(space.network.blocks, every)))
    best = candidates.describe(candidates.point(wanted)[None])
    promising = False

    def gain(self: _Gain, points: Points) -> Floats:
        return (points.identity == best.identity).all(axis=1) * (1.0 if promising else -1.0)

    monkeypatch.setattr(_Gain, "__call__", gain)
    for offered in (True, False):
        drawing = ConfigSampler(candidates, OBJECTIVES, sampler="ehvi", seed=0)
        if offered:
            drawing.offer(candidates.point(wanted))
        drawn = []
        for number in range(4):
            promising = number > 1
            drawn.append(candidates.config(drawing.ask(number)[1]) == wanted)
        assert drawn == [False, False, offered, False]
