"""A forecast of the score that an untrained network will reach, from the networks that were trained.

A Gaussian process over a config's features (`search.optimize.candidates`), on the logarithm of the error (1 - score),
where compression acts about additively. Its mean before any trial is what the effects of single blocks add up to, where
they are known (`search.optimize.forecast`). What is left of that is a linear trend and a Matern 5/2 remainder of one
length scale. One length scale for all features is a choice by measurement: tens of trials are too few to tell one scale
for each.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

from search.optimize.candidates import Floats
from search.optimize.forecast import Forecast

__all__ = ["LEARNS_FROM", "Surrogate", "recent", "sampling_deviation", "to_log_error", "to_score"]

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


def sampling_deviation(log_errors: Floats, images: int) -> Floats:
    """Return by how much a measured log error is off, as a standard deviation, since the images are so few.

    Of independent images each is wrong with the same probability, and the measured error is their share.
    """
    errors = np.clip(np.exp(log_errors) - _FLOOR, 1 / images, 0.5)
    deviation: Floats = np.sqrt(errors * (1 - errors) / images) / (errors + _FLOOR)
    return deviation


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
        self._features = features
        inputs = self._scaled(features)
        targets = (residuals - self._offset) / self._unit
        if forecast is None or len(scores) >= LEARNS_FROM:
            self.kernel = _kernel(inputs[:first].tobytes(), targets[:first].tobytes(), inputs.shape[1])
        else:
            self.kernel = _FIXED
        self._covariance = _Covariance.of(self.kernel)
        self._inputs, self._targets = inputs, targets
        self._noise = self._covariance.noise + 1e-8 + variance / self._unit**2
        self._factor = self._factored(inputs, self._noise)
        self._weights = cho_solve((self._factor, True), targets)
        self._known, self._sharp = inputs, self._factor

    def predict(self, features: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of the log error (m,) that training would give, without its noise."""
        points = self._scaled(features)
        covariance = self._covariance(points, self._known)
        told = solve_triangular(self._sharp, covariance.T, lower=True)
        variance = self._covariance.variance(points) - (told**2).sum(axis=0)
        mean = self._unscaled(covariance[:, : len(self._inputs)] @ self._weights, features)
        return mean, np.sqrt(np.maximum(variance, 1e-8)) * self._unit

    def await_scores(self, features: Floats) -> None:
        """Be as sure from now on as when trials (m, d) that are under way will have been measured.

        Means stay: the scores that these are expected to have move none.
        """
        self._known = np.vstack([self._inputs, self._scaled(features)])
        noise = np.full(len(features), self._covariance.noise + 1e-8)
        self._sharp = self._factored(self._known, np.concatenate([self._noise, noise]))

    def _factored(self, inputs: Floats, noise: Floats) -> Floats:
        """Return the lower Cholesky factor of the covariance of measured inputs."""
        covariance = self._covariance(inputs, inputs)
        covariance[np.diag_indices(len(inputs))] += noise
        factor: Floats = cholesky(covariance, lower=True)
        return factor

    def mean(self, features: Floats) -> Floats:
        """Return the mean log error (m,) alone, which is quicker."""
        return self._unscaled(self._covariance(self._scaled(features), self._inputs) @ self._weights, features)

    def left_out(self) -> Floats:
        """Return the log error (n,) that the other trials forecast for each trial."""
        inverse = cho_solve((self._factor, True), np.eye(len(self._factor)))
        return self._unscaled(self._targets - self._weights / inverse.diagonal(), self._features)

    def _prior(self, features: Floats) -> Floats:
        """Return the log error (m,) that the effects alone forecast."""
        prior: Floats = self._base + features @ self._slopes
        return prior

    def _scaled(self, features: Floats) -> Floats:
        return (features - self._middle) / self._scale

    def _unscaled(self, targets: Floats, features: Floats) -> Floats:
        return targets * self._unit + self._offset + self._prior(features)


@dataclass(frozen=True)
class _Covariance:
    """The kernel's covariance, from matrix products: what scikit-learn's own takes is most of a draw."""

    linear: float
    bias: float
    smooth: float
    length: float
    noise: float

    @classmethod
    def of(cls, kernel: Any) -> _Covariance:
        """Return that of a kernel as `_kernel` returns it."""
        linear, smooth = kernel.k1.k1, kernel.k1.k2
        return cls(
            linear=linear.k1.constant_value,
            bias=linear.k2.sigma_0**2,
            smooth=smooth.k1.constant_value,
            length=smooth.k2.length_scale,
            noise=kernel.k2.noise_level,
        )

    def __call__(self, rows: Floats, columns: Floats) -> Floats:
        """Return the covariances (m, n) of two sets of inputs (m, d) and (n, d), without noise."""
        dots = rows @ columns.T
        squares = (rows**2).sum(axis=1)[:, None] + (columns**2).sum(axis=1) - 2 * dots
        distances = np.sqrt(np.maximum(squares, 0.0) * 5) / self.length
        matern = (1 + distances + distances**2 / 3) * np.exp(-distances)
        covariance: Floats = self.linear * (self.bias + dots) + self.smooth * matern
        return covariance

    def variance(self, rows: Floats) -> Floats:
        """Return the variances (m,) of inputs (m, d)."""
        variance: Floats = self.linear * (self.bias + (rows**2).sum(axis=1)) + self.smooth
        return variance


def _milestone(trials: int) -> int:
    """Return how many of the first trials choose the kernel; it depends on the number of trials and nothing else."""
    milestone = 2
    while (following := int(milestone * _GROWTH) + 1) <= min(trials, _ENOUGH):
        milestone = following
    return min(milestone, trials)


_FIXED = ConstantKernel(0.3) * DotProduct(1.0) + ConstantKernel(0.5) * Matern(3.0, nu=2.5) + WhiteKernel(0.1)


@lru_cache(maxsize=8)
def _kernel(inputs: bytes, targets: bytes, features: int) -> Any:
    """Return the kernel of highest likelihood for these trials.

    Its bounds keep some of a trend, and forms alike: of few trials, whose scores are uncertain by their images alone,
    the likelihood would often have it that nothing can be learnt of others.
    """
    kernel = (
        ConstantKernel(1.0, (1e-1, 1e2)) * DotProduct(1.0, (1e-2, 1e2))
        + ConstantKernel(0.5, (1e-2, 1e2)) * Matern(3.0, (3.0, 1e2), nu=2.5)
        + WhiteKernel(0.1, (1e-3, 1.0))
    )
    process = GaussianProcessRegressor(kernel)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(np.frombuffer(inputs).reshape(-1, features), np.frombuffer(targets))
    return process.kernel_
