"""Our own sampler: expected hypervolume improvement, with every objective but the score known exactly.

Optuna's samplers learn size and compute of a config from trials, as they learn its score. Here both are known before
any training, so only the score is forecast (`search.optimize.surrogate`). The sampler draws the config whose exact
costs and uncertain score promise the largest gain in the study's own hypervolume (`results.pareto`), on average over
the scores that it may reach (Emmerich, Giannakoglou & Naujoks 2006, for one uncertain objective). It never draws a
config that is over budget or was drawn before. A latency, which only a trial can measure, is forecast too, and its mean
is taken for exact.
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
from search.optimize.surrogate import Surrogate, to_score
from search.study.budget import Budget

__all__ = ["FORECAST", "EHVISampler", "expected_hypervolume_improvement"]

FORECAST = "forecast"
"""Attribute of a pruned trial: its forecast score."""

_FIRST = 8
"""Finished trials before the score is forecast; until then draws are random."""
_ALL = 4096
"""Points of a space up to which all are compared; of a larger one, candidates are drawn."""
_RANDOM = 192
"""Candidates drawn at random."""
_FRESH = 16
"""Random choices of each block that they are made of."""
_NEAR = 192
"""Candidates drawn near members of the front."""
_CHANGES = 3
"""Most knobs in which they differ from the member."""
_NODES = np.append(norm.ppf((np.arange(4) + 0.5) / 4), 3.0)
"""Points at which a score's distribution is evaluated, in standard deviations: the middles of its quarters, and one far
above, which decides if nothing else promises a gain."""
_WEIGHTS = np.append(np.full(4, 0.2499), 0.0004)
"""Their probabilities."""
_UNSURE = 0.25
"""Standard deviation of the log error of a trial that was stopped early."""
_MOST = 400
"""Trials that the score is forecast from at most: the last ones."""


class EHVISampler(BaseSampler):
    """Draws the point that promises the largest gain in hypervolume."""

    def __init__(
        self,
        candidates: Candidates,
        objectives: Sequence[Objective],
        budget: Budget,
        distributions: Mapping[str, BaseDistribution],
        seed: int,
    ) -> None:
        self._candidates = candidates
        self._budget = budget
        self._distributions = dict(distributions)
        self._columns = [objective.column for objective in objectives]
        self._score = [objective.direction for objective in objectives].index("max")
        self._random = np.random.default_rng(seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return all knobs, whatever was drawn before."""
        return self._distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the next point; nothing if one is enqueued already, or none is left."""
        if not search_space or "fixed_params" in trial.system_attrs:
            return {}
        past = [t for t in study.get_trials(deepcopy=False) if t.params.keys() == search_space.keys()]
        point = self._next_point(past)
        return {} if point is None else {name: int(index) for name, index in zip(search_space, point, strict=True)}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> int:
        """Return a value at random."""
        return int(self._random.integers(len(self._candidates.knobs[param_name])))

    def _next_point(self, past: Sequence[FrozenTrial]) -> Ints | None:
        """Return the point (knobs,) to try after these trials, None if none is left."""
        indices = [[trial.params[name] for name in self._distributions] for trial in past]
        tried = self._candidates.describe(np.array(indices, dtype=np.int64).reshape(-1, len(self._distributions)))
        finished = np.array([trial.state == TrialState.COMPLETE for trial in past], dtype=bool)
        values = np.array([trial.values for trial in past if trial.state == TrialState.COMPLETE])
        values = values.reshape(-1, len(self._columns))
        losses = self._losses(values, values)
        members = moocore.is_nondominated(losses, keep_weakly=True) if len(values) else finished[:0]
        pool = self._pool(tried, tried.indices[finished][members])
        if not len(pool.indices):
            return None
        if len(values) < _FIRST:
            return pool.indices[self._random.integers(len(pool.indices))]
        return pool.indices[int(np.argmax(self._gains(pool, tried, past, values)))]

    def _losses(self, values: Floats, finished: Floats) -> Floats:
        """Return values (m, objectives) as losses: lower is better, 0 the ideal, 1 the reference of hypervolume.

        The reference is the uncompressed network's cost; of a latency the worst of the finished trials.
        """
        losses = values.copy()
        for index, column in enumerate(self._columns):
            reference = self._candidates.uncompressed.get(column) or finished[:, index].max(initial=1e-9)
            losses[:, index] = 1 - values[:, index] if index == self._score else values[:, index] / reference
        return losses

    def _pool(self, tried: Points, members: Ints) -> Points:
        """Return points within budget that make networks which were not drawn before."""
        small = self._candidates.size <= _ALL
        points = self._candidates.all_points if small else self._candidates.describe(self._draw(members))
        seen = {row.tobytes() for row in tried.identity}
        allowed = self._budget.fits_each(points.costs)
        allowed &= np.array([row.tobytes() not in seen for row in points.identity], dtype=bool)
        return points.take(allowed)

    def _draw(self, members: Ints) -> Ints:
        """Return points at random, and near the members of the front (n, knobs)."""
        choices = np.array([len(values) for values in self._candidates.knobs.values()])
        fresh = self._random.integers(choices, size=(_FRESH, len(choices)))
        random = np.empty((_RANDOM, len(choices)), dtype=np.int64)
        for columns in self._candidates.columns.values():
            random[:, columns] = fresh[self._random.integers(_FRESH, size=_RANDOM)][:, columns]
        if not len(members):
            return random
        near = members[self._random.integers(len(members), size=_NEAR)]
        changes = self._random.integers(1, _CHANGES + 1, size=(_NEAR, 1))
        changed = self._random.random(near.shape).argsort(axis=1) < changes
        return np.vstack([random, np.where(changed, self._random.integers(choices, size=near.shape), near)])

    def _gains(self, pool: Points, tried: Points, past: Sequence[FrozenTrial], values: Floats) -> Floats:
        """Return the expected gain of each point of the pool (m,).

        A running trial counts as if it had finished with its forecast score.
        """
        states = np.array([trial.state.value for trial in past])
        finished = states == TrialState.COMPLETE.value
        running = states == TrialState.RUNNING.value
        scores = np.array([trial.user_attrs.get(FORECAST, np.nan) for trial in past])
        scores[finished] = values[:, self._score]
        scored = np.flatnonzero(np.isfinite(scores))[-_MOST:]
        variance = np.where(finished[scored], 0.0, _UNSURE**2)
        surrogate = Surrogate(tried.features[scored], scores[scored], variance)
        mean, deviation = surrogate.predict(pool.features)
        pool_scores = to_score(mean[:, None] - deviation[:, None] * _NODES)

        def losses(points: Points, scores: Floats) -> Floats:
            return self._losses(self._values(points, scores, tried.features[finished], values), values)

        underway = tried.take(running)
        if running.any():
            forecast = losses(underway, to_score(surrogate.mean(underway.features)))
        else:
            forecast = np.empty((0, len(self._columns)))
        order = [self._score, *(index for index in range(len(self._columns)) if index != self._score)]
        dominated = np.concatenate([self._losses(values, values), forecast])[:, order]
        certain = losses(pool, pool_scores[:, 0])[:, order[1:]]
        return expected_hypervolume_improvement(dominated, 1 - pool_scores, certain, _WEIGHTS)

    def _values(self, points: Points, scores: Floats, features: Floats, values: Floats) -> Floats:
        """Return all objectives (m, objectives) of points with these scores (m,).

        Costs are exact. Latencies are those of the most similar finished trials, which have `features` (n, d) and
        `values` (n, objectives).
        """
        objectives = np.empty((len(points.indices), len(self._columns)))
        for index, column in enumerate(self._columns):
            if index == self._score:
                objectives[:, index] = scores
            elif column in points.costs:
                objectives[:, index] = points.costs[column]
            else:
                objectives[:, index] = _nearest(features, values[:, index], points.features)
        return objectives


def expected_hypervolume_improvement(losses: Floats, uncertain: Floats, certain: Floats, weights: Floats) -> Floats:
    """Return the mean gain (m,) in dominated hypervolume below the reference point (1, ..., 1) of each candidate.

    `losses` (n, k) are the points so far, lower is better. Of m candidates the first objective is one of `uncertain`
    (m, q), with probabilities `weights` (q,), and the others are `certain` (m, k - 1).
    """
    inside: Floats = losses[(losses < 1).all(axis=1)]
    front = inside[moocore.is_nondominated(inside)] if len(inside) else inside
    volume = moocore.Hypervolume(ref=np.ones(losses.shape[1]))
    before = float(volume(front)) if len(front) else 0.0
    no_dearer = (front[:, None, 1:] <= certain).all(axis=2)
    needed = np.where(no_dearer, front[:, :1], 1.0).min(axis=0, initial=1.0)  # what each candidate must be better than
    promising = (uncertain < needed[:, None]) & (certain < 1).all(axis=1, keepdims=True)
    gains = np.zeros(len(certain))
    points = np.vstack([front, np.ones(losses.shape[1])])
    for row, node in zip(*promising.nonzero(), strict=True):
        points[-1, 0] = uncertain[row, node]
        points[-1, 1:] = certain[row]
        gains[row] += weights[node] * (float(volume(points)) - before)
    return gains


def _nearest(features: Floats, values: Floats, points: Floats) -> Floats:
    """Return the mean of the values (n,) at the three nearest features (n, d), for each of the points (m, d)."""
    distances = ((points[:, None, :] - features) ** 2).sum(axis=2)
    rows: npt.NDArray[np.intp] = distances.argsort(axis=1)[:, :3]
    means: Floats = values[rows].mean(axis=1)
    return means
