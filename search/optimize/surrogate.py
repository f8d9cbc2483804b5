"""A forecast of the score that an untrained network will reach, from the networks that were trained.

A Gaussian process over a config's features (`search.optimize.candidates`), on the logarithm of the error (1 - score),
where compression acts about additively. Its mean before any trial is what the effects of single blocks add up to, where
they are known (`search.optimize.forecast`). What is left of that is a linear trend and a Matern 5/2 remainder of one
length scale. One length scale for all features is a choice by measurement: tens of trials are too few to tell one scale
for each.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.linalg import cho_solve
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

from search.optimize.candidates import Floats
from search.optimize.forecast import Forecast

__all__ = ["LEARNS_FROM", "Surrogate", "recent", "to_log_error", "to_score"]

LEARNS_FROM = 8
"""Trials from which on the kernel is fitted to them; fewer move a forecast from effects by a fixed one."""
_FLOOR = 0.002
"""Added to the error, so that no error at all is not infinitely better than a little."""
_GROWTH = 1.5
"""The kernel is fitted anew whenever the number of trials has grown by this factor."""
_ENOUGH = 100
"""Trials that choose the kernel at most: what it takes grows with their cube."""
_MOST, _STEP = 400, 100
_UNIT = 0.3
"""How far forecasts from effects alone are off, in log error: a standard deviation."""
_WIDE = 0.5
"""What stands for the spread of a feature that does not vary among the trials, or before they are enough to tell it."""
_TRUST = 4.0
"""Weight of a forecast's values among the features."""


def recent(trials: int) -> int:
    """Return how many of the last of so many trials are learnt from, 400 at most.

    Beyond that the oldest are let go a hundred at a time: each time the kernel is fitted anew.
    """
    return trials if trials <= _MOST else trials - -(-(trials - _MOST) // _STEP) * _STEP


def to_log_error(scores: Floats) -> Floats:
    """Return what the surrogate learns from scores in [0, 1]; lower is better."""
    return np.log(1 - scores + _FLOOR)


def to_score(log_errors: Floats) -> Floats:
    """Return the inverse of `to_log_error`, clipped to [0, 1]."""
    return np.clip(1 + _FLOOR - np.exp(log_errors), 0.0, 1.0)


class Surrogate:
    """A process fitted to features (n, d) and scores (n,).

    `variance` (n,) says how unsure each log error is: 0 if it was measured. The first features are the values of the
    forecast, if there is one. Without one there must be a trial at least.
    """

    def __init__(self, features: Floats, scores: Floats, variance: Floats, forecast: Forecast | None = None) -> None:
        slopes = () if forecast is None else forecast.slopes
        self._slopes = np.zeros(features.shape[1])
        self._slopes[: len(slopes)] = slopes
        self._base = 0.0 if forecast is None else float(to_log_error(np.array(forecast.reference)))
        weights = np.ones(features.shape[1])
        weights[: len(slopes)] = _TRUST
        residuals = to_log_error(scores) - self._prior(features)
        if forecast is None or len(scores) >= LEARNS_FROM:
            first = _milestone(len(scores))
            spread = features[:first].std(axis=0)
            self._middle = features[:first].mean(axis=0)
            self._scale = np.where(spread > 1e-9, spread, _WIDE) / weights
            self._offset = float(residuals[:first].mean())
            self._unit = float(residuals[:first].std()) or 1.0
        else:
            self._middle, self._scale = np.zeros(features.shape[1]), _WIDE / weights
            self._offset, self._unit = 0.0, _UNIT
        inputs = self._scaled(features)
        targets = (residuals - self._offset) / self._unit
        if forecast is None or len(scores) >= LEARNS_FROM:
            kernel = _kernel(inputs[:first].tobytes(), targets[:first].tobytes(), inputs.shape[1])
        else:
            kernel = _FIXED
        self._noise = float(kernel.k2.noise_level)
        self._process = GaussianProcessRegressor(kernel, alpha=1e-8 + variance / self._unit**2, optimizer=None)
        if len(scores):
            self._process.fit(inputs, targets)

    def predict(self, features: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of the log error (m,) that training would give, without its noise."""
        mean, deviation = self._process.predict(self._scaled(features), return_std=True)
        deviation = np.sqrt(np.maximum(deviation**2 - self._noise, 1e-8))
        return mean * self._unit + self._offset + self._prior(features), deviation * self._unit

    def mean(self, features: Floats) -> Floats:
        """Return the mean log error (m,) alone, which is quicker."""
        mean: Floats = self._process.predict(self._scaled(features)) * self._unit + self._offset
        return mean + self._prior(features)

    def left_out(self) -> Floats:
        """Return the log error (n,) that the other trials forecast for each trial."""
        process = self._process
        inverse = cho_solve((process.L_, True), np.eye(len(process.L_)))
        targets = process.y_train_ - process.alpha_ / inverse.diagonal()
        features = process.X_train_ * self._scale + self._middle
        return targets * self._unit + self._offset + self._prior(features)

    def _prior(self, features: Floats) -> Floats:
        """Return the log error (m,) that the effects alone forecast."""
        prior: Floats = self._base + features @ self._slopes
        return prior

    def _scaled(self, features: Floats) -> Floats:
        return (features - self._middle) / self._scale


def _milestone(trials: int) -> int:
    """Return how many of the first trials choose the kernel; it depends on the number of trials and nothing else."""
    milestone = 2
    while (following := int(milestone * _GROWTH) + 1) <= min(trials, _ENOUGH):
        milestone = following
    return min(milestone, trials)


_FIXED = ConstantKernel(0.3) * DotProduct(1.0) + ConstantKernel(0.5) * Matern(3.0, nu=2.5) + WhiteKernel(0.1)


@lru_cache(maxsize=8)
def _kernel(inputs: bytes, targets: bytes, features: int) -> Any:
    """Return the kernel of highest likelihood for these trials."""
    kernel = (
        ConstantKernel(1.0, (1e-2, 1e2)) * DotProduct(1.0, (1e-2, 1e2))
        + ConstantKernel(0.5, (1e-2, 1e2)) * Matern(3.0, (0.3, 1e2), nu=2.5)
        + WhiteKernel(0.1, (1e-3, 1.0))
    )
    process = GaussianProcessRegressor(kernel)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(np.frombuffer(inputs).reshape(-1, features), np.frombuffer(targets))
    return process.kernel_
