"""Our own sampler: expected hypervolume improvement, where all but accuracy is known exactly.

Optuna's samplers learn size and compute of a config from trials, as they do accuracy. Here both are known before any
training, so only accuracy is forecast (`search.optimize.surrogate`), and the config is chosen whose exact costs and
uncertain accuracy promise the largest gain in the study's own hypervolume (`results.pareto.front`), on average over
what the accuracy may be (Emmerich, Giannakoglou & Naujoks 2006, for one uncertain objective). What is over budget or
was drawn before is never drawn. A latency, which only a trial can tell, is forecast too, and its mean taken for exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import moocore
import numpy as np
import numpy.typing as npt
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import norm

from results.objectives import Objective
from search.optimize.candidates import Candidates, Floats, Ints, Points
from search.optimize.surrogate import Surrogate, to_accuracy
from search.study.budget import Budget

__all__ = ["FORECAST", "EHVISampler", "expected_hypervolume_improvement"]

FORECAST = "forecast"
"""Attribute of a pruned trial: the accuracy that it was going to have."""

_FIRST = 8
"""Trials that are drawn at random, before accuracy is forecast."""
_ALL = 4096
"""A space of so many points is looked at whole."""
_RANDOM, _FRESH, _NEAR, _CHANGES = 192, 16, 192, 3
"""Candidates of a larger one: random points, made of so many random choices of each block; and members of the front
with up to so many knobs changed."""
_NODES = np.append(norm.ppf((np.arange(4) + 0.5) / 4), 3.0)
_WEIGHTS = np.append(np.full(4, 0.2499), 0.0004)
"""Where an accuracy's distribution is looked at, in standard deviations: the middles of its quarters; and far above,
which decides where nothing else promises a gain."""
_UNSURE = 0.25
"""Standard deviation of the score of a trial that was stopped early."""
_MOST = 400
"""Trials that accuracy is forecast from at most: the last ones."""


class EHVISampler(BaseSampler):
    """Draws what promises the largest gain in hypervolume."""

    def __init__(
        self,
        candidates: Candidates,
        objectives: Sequence[Objective],
        budget: Budget,
        distributions: Mapping[str, BaseDistribution],
        seed: int,
    ) -> None:
        self._candidates, self._budget, self._distributions = candidates, budget, dict(distributions)
        self._names = [objective.name for objective in objectives]
        self._accuracy = self._names.index("val_top1")
        self._random = np.random.default_rng(seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All knobs, whatever was drawn before."""
        return self._distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next point; none where one is set already, or none is left."""
        if not search_space or "fixed_params" in trial.system_attrs:
            return {}
        past = [t for t in study.get_trials(deepcopy=False) if t.params.keys() == search_space.keys()]
        point = self._next(past)
        return {} if point is None else {name: int(place) for name, place in zip(search_space, point, strict=True)}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> int:
        """A value at random."""
        return int(self._random.integers(len(self._candidates.knobs[param_name])))

    def _next(self, past: Sequence[FrozenTrial]) -> Ints | None:
        """The point to try after these trials: (knobs,)."""
        numbers = [[trial.params[name] for name in self._distributions] for trial in past]
        tried = self._candidates.look(np.array(numbers, dtype=np.int64).reshape(-1, len(self._distributions)))
        finished = np.array([trial.state == TrialState.COMPLETE for trial in past], dtype=bool)
        values = np.array([trial.values for trial in past if trial.state == TrialState.COMPLETE])
        values = values.reshape(-1, len(self._names))
        losses = self._losses(values, values)
        members = moocore.is_nondominated(losses, keep_weakly=True) if len(values) else finished[:0]
        pool = self._pool(tried, tried.numbers[finished][members])
        if not len(pool.numbers):
            return None
        if len(values) < _FIRST:
            return pool.numbers[self._random.integers(len(pool.numbers))]
        return pool.numbers[int(np.argmax(self._gains(pool, tried, past, values)))]

    def _losses(self, values: Floats, finished: Floats) -> Floats:
        """Values (m, objectives) with lower for better: 0 the ideal, 1 what hypervolume counts from.

        That is the uncompressed network's cost; of a latency the worst finished one.
        """
        losses = values.copy()
        for column, name in enumerate(self._names):
            reference = self._candidates.uncompressed.get(name) or finished[:, column].max(initial=1e-9)
            losses[:, column] = 1 - values[:, column] if column == self._accuracy else values[:, column] / reference
        return losses

    def _pool(self, tried: Points, members: Ints) -> Points:
        """Points within budget that make networks which were not drawn before."""
        small = self._candidates.size <= _ALL
        found = self._candidates.everything if small else self._candidates.look(self._drawn(members))
        seen = {row.tobytes() for row in tried.identity}
        fits = self._budget.fit(found.costs)
        fits &= np.array([row.tobytes() not in seen for row in found.identity], dtype=bool)
        return found.take(fits)

    def _drawn(self, members: Ints) -> Ints:
        """Points at random, and near the members of the front (n, knobs)."""
        choices = np.array([len(values) for values in self._candidates.knobs.values()])
        fresh = self._random.integers(choices, size=(_FRESH, len(choices)))
        random = np.empty((_RANDOM, len(choices)), dtype=np.int64)
        for places in self._candidates.places.values():
            random[:, places] = fresh[self._random.integers(_FRESH, size=_RANDOM)][:, places]
        if not len(members):
            return random
        near = members[self._random.integers(len(members), size=_NEAR)]
        changes = self._random.integers(1, _CHANGES + 1, size=(_NEAR, 1))
        changed = self._random.random(near.shape).argsort(axis=1) < changes
        return np.vstack([random, np.where(changed, self._random.integers(choices, size=near.shape), near)])

    def _gains(self, pool: Points, tried: Points, past: Sequence[FrozenTrial], values: Floats) -> Floats:
        """The expected gain of each point of the pool; trials under way count as if they were what is forecast."""
        states = np.array([trial.state.value for trial in past])
        finished, running = (states == state.value for state in (TrialState.COMPLETE, TrialState.RUNNING))
        told = np.array([trial.user_attrs.get(FORECAST, np.nan) for trial in past])
        told[finished] = values[:, self._accuracy]
        known = np.flatnonzero(np.isfinite(told))[-_MOST:]
        unsure = np.where(finished[known], 0.0, _UNSURE**2)
        surrogate = Surrogate(tried.features[known], told[known], unsure)
        mean, deviation = surrogate.predict(pool.features)
        accuracies = to_accuracy(mean[:, None] - deviation[:, None] * _NODES)

        def losses(points: Points, accuracies: Floats) -> Floats:
            return self._losses(self._values(points, accuracies, tried.features[finished], values), values)

        underway = tried.take(running)
        if running.any():
            forecast = losses(underway, to_accuracy(surrogate.mean(underway.features)))
        else:
            forecast = np.empty((0, len(self._names)))
        order = [self._accuracy, *(column for column in range(len(self._names)) if column != self._accuracy)]
        known_losses = np.concatenate([self._losses(values, values), forecast])[:, order]
        certain = losses(pool, accuracies[:, 0])[:, order[1:]]
        return expected_hypervolume_improvement(known_losses, 1 - accuracies, certain, _WEIGHTS)

    def _values(self, points: Points, accuracies: Floats, features: Floats, values: Floats) -> Floats:
        """All objectives (m, objectives) of points of these accuracies (m,): exact costs, and latencies as those of
        the finished trials, (n, d) and (n, objectives), that are most alike.
        """
        found = np.empty((len(points.numbers), len(self._names)))
        for column, name in enumerate(self._names):
            if column == self._accuracy:
                found[:, column] = accuracies
            elif name in points.costs:
                found[:, column] = points.costs[name]
            else:
                found[:, column] = _nearest(features, values[:, column], points.features)
        return found


def expected_hypervolume_improvement(losses: Floats, uncertain: Floats, certain: Floats, weights: Floats) -> Floats:
    """The mean gain (m,) in dominated hypervolume below the reference point (1, ..., 1) that each candidate promises.

    losses (n, k) are what is dominated already, lower is better. Of m candidates the first objective is one of
    `uncertain` (m, q), with probabilities weights (q,), and the others are `certain` (m, k - 1).
    """
    inside: Floats = losses[(losses < 1).all(axis=1)]
    front = inside[moocore.is_nondominated(inside)] if len(inside) else inside
    volume = moocore.Hypervolume(ref=np.ones(losses.shape[1]))
    before = float(volume(front)) if len(front) else 0.0
    no_dearer = (front[:, None, 1:] <= certain).all(axis=2)
    needed = np.where(no_dearer, front[:, :1], 1.0).min(axis=0, initial=1.0)  # what each candidate must be better than
    promising = (uncertain < needed[:, None]) & (certain < 1).all(axis=1, keepdims=True)
    gains, points = np.zeros(len(certain)), np.vstack([front, np.ones(losses.shape[1])])
    for row, node in zip(*promising.nonzero(), strict=True):
        points[-1, 0], points[-1, 1:] = uncertain[row, node], certain[row]
        gains[row] += weights[node] * (float(volume(points)) - before)
    return gains


def _nearest(features: Floats, values: Floats, asked: Floats) -> Floats:
    """The mean of the values (n,) at the three nearest features (n, d), for each of the asked (m, d)."""
    apart = ((asked[:, None, :] - features) ** 2).sum(axis=2)
    rows: npt.NDArray[np.intp] = apart.argsort(axis=1)[:, :3]
    found: Floats = values[rows].mean(axis=1)
    return found
