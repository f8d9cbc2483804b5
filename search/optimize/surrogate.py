"""What accuracy a network that was never trained will have, told by those that were.

A Gaussian process over a config's features (`search.optimize.candidates`): a linear trend and a Matern 5/2 remainder of
one length scale, on the logarithm of the error, where compression acts about additively. One length scale for all
features is a choice by measurement: with a scale each, tens of trials are too few to tell them.
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

__all__ = ["Surrogate", "to_accuracy", "to_score"]

_FLOOR = 0.002
"""Added to the error, so that no error at all is not infinitely better than a little."""
_GROWTH = 1.5
"""The kernel is chosen anew whenever the trials have grown by so much."""


def to_score(accuracy: Floats) -> Floats:
    """From accuracy in [0, 1] to what the surrogate learns; lower is better."""
    return np.log(1 - accuracy + _FLOOR)


def to_accuracy(score: Floats) -> Floats:
    """The inverse of `to_score`, held in [0, 1]."""
    return np.clip(1 + _FLOOR - np.exp(score), 0.0, 1.0)


class Surrogate:
    """Fitted to features (n, d) and accuracies (n,); `variance` (n,) is what is unsure of each score, 0 if measured."""

    def __init__(self, features: Floats, accuracies: Floats, variance: Floats) -> None:
        first = _milestone(len(accuracies))
        scores = to_score(accuracies)
        self._middle, spread = features[:first].mean(axis=0), features[:first].std(axis=0)
        self._scale = np.where(spread > 1e-9, spread, 0.5)
        self._offset, self._unit = float(scores[:first].mean()), float(scores[:first].std()) or 1.0
        inputs, targets = self._normed(features), (scores - self._offset) / self._unit
        kernel = _kernel(inputs[:first].tobytes(), targets[:first].tobytes(), inputs.shape[1])
        self._process = GaussianProcessRegressor(kernel, alpha=1e-8 + variance / self._unit**2, optimizer=None)
        self._process.fit(inputs, targets)
        self._noise = float(kernel.k2.noise_level)

    def predict(self, features: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the score (m,) of what training would measure, its noise left out."""
        mean, deviation = self._process.predict(self._normed(features), return_std=True)
        deviation = np.sqrt(np.maximum(deviation**2 - self._noise, 1e-8))
        return mean * self._unit + self._offset, deviation * self._unit

    def mean(self, features: Floats) -> Floats:
        """The mean score (m,) alone, which is quicker."""
        found: Floats = self._process.predict(self._normed(features)) * self._unit + self._offset
        return found

    def left_out(self) -> Floats:
        """The score (n,) that each trial is forecast to have by the others."""
        process = self._process
        inverse = cho_solve((process.L_, True), np.eye(len(process.L_)))
        targets = process.y_train_ - process.alpha_ / inverse.diagonal()
        return targets * self._unit + self._offset

    def _normed(self, features: Floats) -> Floats:
        return (features - self._middle) / self._scale


def _milestone(trials: int) -> int:
    """The first so many trials choose the kernel; it depends on how many there are and nothing else."""
    found = 2
    while (following := int(found * _GROWTH) + 1) <= trials:
        found = following
    return min(found, trials)


@lru_cache(maxsize=8)
def _kernel(inputs: bytes, targets: bytes, features: int) -> Any:
    """The kernel of highest likelihood for these trials."""
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
