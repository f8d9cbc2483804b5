"""Early stopping: which trials need not be finished, because they cannot enter the front even if all goes well.

A trial's costs are exact before it begins, so the front says what score it needs. At each rung (before training, after
each epoch) its final score is forecast from two sources, its score so far and what the finished trials say of its
config (`search.optimize.surrogate`), on the logarithm of the error. The two are weighed by least squares over the
finished trials, without negative weights (stacked regressions; Breiman 1996). Neither source is followed beyond what
the weights were fitted on: a score so far, or a forecast for a config, outside the range that was seen counts as its
end, and so does the final score that is expected. How far above a forecast the truth may lie is read off the same
trials, each forecast by the others (conformal prediction by leaving one out; Vovk, Gammerman & Shafer 2005): of trials
like those that finished at most `miss_rate` end above their optimistic forecast. Fewer than 1 / miss_rate - 1 trials
give no such bound, and nothing is stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np
from scipy.optimize import nnls

from layers import UsageError
from results.objectives import Objective
from search.optimize.candidates import Floats
from search.optimize.forecast import Forecast
from search.optimize.surrogate import Surrogate, recent, to_log_error, to_score

__all__ = ["ConformalPruner"]

_EXACT = frozenset({"size_bytes", "flops", "parameters", "macs"})
"""Costs that are known before a trial begins."""


class ConformalPruner:
    """Learns from finished trials, and forecasts the final score of a running one."""

    def __init__(self, objectives: Sequence[Objective], *, miss_rate: float, forecast: Forecast | None = None) -> None:
        """With a miss rate of 0 nothing is ever stopped, and neither is it if a cost is only known at the end.

        `forecast` is that of the features (`search.optimize.candidates`).
        """
        if not 0 <= miss_rate < 1:
            raise UsageError(f"miss_rate (={miss_rate}) must be at least 0 and below 1")
        self._forecast = forecast
        self._costs = [objective.column for objective in objectives if objective.direction == "min"]
        self._miss_rate = miss_rate if _EXACT.issuperset(self._costs) else 0.0
        self._points = np.empty((0, len(self._costs) + 1))
        self._curves: list[Floats] = []
        self._features: list[Floats] = []
        self._fitted: tuple[int, Surrogate, Floats] | None = None

    def observe(self, costs: Mapping[str, float], scores: Sequence[float], features: Floats) -> None:
        """Learn from a finished trial.

        `costs` are by column, `scores` those before training and after each epoch, `features` (d,) those of its config
        (`search.optimize.candidates`).
        """
        if scores:
            self._points = np.vstack([self._points, [-scores[-1], *(costs[name] for name in self._costs)]])
            self._curves.append(to_log_error(np.array(scores)))
            self._features.append(features)

    def forecast(self, scores: Sequence[float], features: Floats) -> tuple[float, float] | None:
        """Return the final score of a trial with these scores so far, as expected and at its most optimistic.

        None while too few trials have finished.
        """
        curves = _recent(self._curves)
        rung = len(scores) - 1
        rank = ceil((1 - self._miss_rate) * (len(curves) + 1))
        if rank > len(curves) or any(len(curve) <= rung for curve in curves):
            return None
        surrogate, left_out = self._surrogate()
        rungs = np.array([curve[rung] for curve in curves])
        finals = np.array([curve[-1] for curve in curves])
        seen = finals.min(), finals.max()
        now = to_log_error(np.array(scores[-1])).clip(rungs.min(), rungs.max())
        point = np.array([now, surrogate.mean(features[None]).clip(*seen)[0]])
        expected, misses = _fit(np.column_stack([rungs, left_out.clip(*seen)]), finals, point)
        expected = float(np.clip(expected, *seen))
        margin = max(0.0, float(np.sort(-misses)[rank - 1]))  # a lower log error is a higher score
        forecast = to_score(np.array([expected, expected - margin]))
        return float(forecast[0]), float(forecast[1])

    def should_prune(self, costs: Mapping[str, float], scores: Sequence[float], features: Floats) -> bool:
        """Return whether some finished trial costs no more and has a higher score than this one may reach."""
        forecast = self.forecast(scores, features)
        if forecast is None:
            return False
        point = [-forecast[1], *(costs[name] for name in self._costs)]
        no_worse = (self._points <= point).all(axis=1)
        return bool((no_worse & (self._points < point).any(axis=1)).any())

    def _surrogate(self) -> tuple[Surrogate, Floats]:
        """Return what forecasts from features alone, and its forecasts of the finished trials by each other."""
        count = len(self._curves)
        if self._fitted is None or self._fitted[0] != count:
            finals = to_score(np.array([curve[-1] for curve in _recent(self._curves)]))
            features = np.array(_recent(self._features))
            surrogate = Surrogate(features, finals, np.zeros(len(finals)), self._forecast)
            self._fitted = count, surrogate, surrogate.left_out()
        return self._fitted[1:]


def _recent(values: list[Floats]) -> list[Floats]:
    return values[len(values) - recent(len(values)) :]


def _fit(inputs: Floats, targets: Floats, point: Floats) -> tuple[float, Floats]:
    """Fit least squares with a constant and no negative slope.

    Returns the value at a point (k,), and what each target (n,) misses of the fit to the others on the inputs (n, k)
    whose slopes are not 0.
    """
    slopes, _ = nnls(inputs - inputs.mean(axis=0), targets - targets.mean())
    inputs = np.column_stack([np.ones_like(targets), inputs[:, slopes > 0]])
    point = np.append(1.0, point[slopes > 0])
    inverse = np.linalg.pinv(inputs.T @ inputs)
    coefficients = inverse @ inputs.T @ targets
    leverage = np.einsum("ij,jk,ik->i", inputs, inverse, inputs)
    misses: Floats = (targets - inputs @ coefficients) / np.maximum(1 - leverage, 1e-9)
    return float(point @ coefficients), misses
