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

import numpy as np
import numpy.typing as npt
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial
from scipy.stats import norm

from search.optimize.candidates import Candidates, Floats, Ints, Points
from search.optimize.history import History
from search.optimize.improvement import expected_hypervolume_improvement
from search.optimize.surrogate import LEARNS_FROM, Surrogate, sampling_deviation, to_score
from search.study.budget import Budget

__all__ = ["EHVISampler"]

_ALL = 4096
"""Points of a space up to which all are compared; of a larger one, candidates are drawn."""
_RANDOM = 128
"""Candidates drawn at random."""
_FRESH = 8
"""Random choices of each block that they are made of."""
_NEAR = 128
"""Candidates drawn near others: members of the front, then the most promising."""
_CHANGES = 3
"""Most knobs in which such candidates differ."""
_ROUNDS = 2
"""Rounds in which candidates near the most promising ones so far are looked at."""
_BEST = 16
"""How many of these are taken."""
_NODES = np.append(norm.ppf((np.arange(4) + 0.5) / 4), 3.0)
"""Points at which a score's distribution is evaluated, in standard deviations: the middles of its quarters, and one far
above, which decides if nothing else promises a gain."""
_WEIGHTS = np.append(np.full(4, 0.2499), 0.0004)
"""Their probabilities."""
_ERRORS, _MARGIN = 2.0, 0.1
"""A network counts as usable up to so many errors for each of the uncompressed one, and so many more."""
_BEYOND = 1.05
"""Costs count up to so many of the uncompressed network's: at just as many, what saves only one of two would gain
nothing."""
_UNSURE = 0.25
"""Standard deviation of the log error of a trial that was stopped early."""


class EHVISampler(BaseSampler):
    """Draws the point that promises the largest gain in hypervolume."""

    def __init__(
        self,
        candidates: Candidates,
        history: History,
        budget: Budget,
        distributions: Mapping[str, BaseDistribution],
        starts: Sequence[Ints],
        images: int | None,
        seed: int,
    ) -> None:
        """Take what is shared; `starts` are points (knobs,) that are looked at at every draw, until they were drawn.

        `images` are those that scores are measured on, if these are shares of them.
        """
        self._starts = starts
        self._candidates = candidates
        self._history = history
        self._budget = budget
        self._distributions = dict(distributions)
        self._images = images
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
        point = self.next_point()
        return {} if point is None else {name: int(index) for name, index in zip(search_space, point, strict=True)}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> int:
        """Return a value at random."""
        return int(self._random.integers(len(self._candidates.knobs[param_name])))

    def next_point(self) -> Ints | None:
        """Return the point (knobs,) to try next, None if none is left."""
        history = self._history
        if self._candidates.size <= _ALL:
            pool = self._fitting(self._candidates.all_points)
        else:
            points = np.vstack([*self._starts, self._draw(history.front()[0])])
            pool = self._fitting(self._candidates.describe(points))
        if not len(pool.indices):
            return None
        if history.finished < LEARNS_FROM and self._candidates.forecast is None:
            return pool.indices[self._random.integers(len(pool.indices))]
        gain = _Gain(self._candidates, history, self._images)
        gains = gain(pool)
        if self._candidates.size > _ALL:
            for _ in range(_ROUNDS):
                best = pool.indices[np.argsort(-gains, kind="stable")[:_BEST]]
                more = self._fitting(self._candidates.describe(self._near(best)))
                pool, gains = pool.joined(more), np.concatenate([gains, gain(more)])
        return pool.indices[int(np.argmax(gains))]

    def _fitting(self, points: Points) -> Points:
        """Return those points within budget that make networks which were not drawn before."""
        return points.take(self._budget.fits_each(points.costs) & self._history.is_new(points))

    def _draw(self, members: Ints) -> Ints:
        """Return points at random, and near the members of the front (n, knobs)."""
        choices = self._choices()
        fresh = self._random.integers(choices, size=(_FRESH, len(choices)))
        random = np.empty((_RANDOM, len(choices)), dtype=np.int64)
        for columns in self._candidates.columns.values():
            random[:, columns] = fresh[self._random.integers(_FRESH, size=_RANDOM)][:, columns]
        return np.vstack([random, self._near(members)]) if len(members) else random

    def _near(self, members: Ints) -> Ints:
        """Return points that differ from one of these (n, knobs) in a few knobs."""
        near = members[self._random.integers(len(members), size=_NEAR)]
        changes = self._random.integers(1, _CHANGES + 1, size=(_NEAR, 1))
        changed = self._random.random(near.shape).argsort(axis=1) < changes
        return np.where(changed, self._random.integers(self._choices(), size=near.shape), near)

    def _choices(self) -> Ints:
        return np.array([len(values) for values in self._candidates.knobs.values()])


class _Gain:
    """The expected gain in hypervolume of points, by what the history teaches.

    A running trial counts as if it had finished with its forecast score, and makes what is near it surer: so workers
    spread over what promises something (kriging believer: Ginsbourger, Le Riche & Carraro 2010). A score is as
    uncertain as its forecast, and besides as a share of so many images.
    """

    def __init__(self, candidates: Candidates, history: History, images: int | None = None) -> None:
        self._images = images
        self._history = history
        features, scores, measured = history.scored()
        self._measured = history.measured()
        variance = np.where(measured, 0.0, _UNSURE**2)
        self._surrogate = Surrogate(features, scores, variance, candidates.forecast)
        self._usable = 1.0
        if candidates.forecast is not None:
            self._usable = min(1.0, _ERRORS * (1 - candidates.forecast.reference) + _MARGIN)
        first, others = history.score, [i for i in range(len(history.columns)) if i != history.score]
        self._order = [first, *others]
        running = history.running()
        underway = [self._losses(points, to_score(self._surrogate.mean(points.features))) for points in running]
        if running:
            self._surrogate.await_scores(np.concatenate([points.features for points in running]))
        self._dominated = np.concatenate([history.losses(history.front()[1])[:, self._order], *underway])
        self._dominated[:, 0] = self._weighed(self._dominated[:, 0])
        self._dominated[:, 1:] /= _BEYOND

    def __call__(self, points: Points) -> Floats:
        """Return the expected gain of each point (m,)."""
        mean, deviation = self._surrogate.predict(points.features)
        if self._images is not None:
            deviation = np.hypot(deviation, sampling_deviation(mean, self._images))
        scores = to_score(mean[:, None] - deviation[:, None] * _NODES)
        certain = self._losses(points, scores[:, 0])[:, 1:] / _BEYOND
        return expected_hypervolume_improvement(self._dominated, self._weighed(1 - scores), certain, _WEIGHTS)

    def _weighed(self, errors: Floats) -> Floats:
        """Return errors on a scale from 0 to 1, half of which is taken by those that leave a network usable."""
        weighed: Floats = (errors + np.minimum(errors / self._usable, 1.0)) / 2
        return weighed

    def _losses(self, points: Points, scores: Floats) -> Floats:
        """Return the losses (m, objectives) of points with these scores (m,), that of the score first.

        Costs are exact; latencies are those of the most similar finished trials.
        """
        history = self._history
        values = np.empty((len(points.indices), len(history.columns)))
        for index, column in enumerate(history.columns):
            if index == history.score:
                values[:, index] = scores
            elif column in points.costs:
                values[:, index] = points.costs[column]
            else:
                features, measured = self._measured
                values[:, index] = _nearest(features, measured[:, index], points.features)
        return history.losses(values)[:, self._order]


def _nearest(features: Floats, values: Floats, points: Floats) -> Floats:
    """Return the mean of the values (n,) at the three nearest features (n, d), for each of the points (m, d)."""
    distances = ((points[:, None, :] - features) ** 2).sum(axis=2)
    rows: npt.NDArray[np.intp] = distances.argsort(axis=1)[:, :3]
    means: Floats = values[rows].mean(axis=1)
    return means
