"""The rule that predicts the effect of any form of a block from the effects that were measured.

An effect is how far the outputs diverge with one block compressed, in nats: what the loss rises by (`spaces.effects`).
Its logarithm is a Gaussian process over what the form does to the block's layers. Each part of a form (its series, its
templates, bits of weights, of inputs, of vectors, int8) is described by a few numbers (`results.analysis.form_parts`).
A priori rounding costs a quarter a bit more, as its noise has a quarter of the power, and the others cost more the more
they leave out. The curve of each part is shared by all blocks, and raised or lowered by each block's own sensitivity;
a block's curve has a shape of its own where its measurements say so. So a few forms of a block tell of all others.

    log d(block, part) = curve(part) + sensitivity(block) + sensitivity(block, part) + shape(block, part)

Parts add up, times a factor for each pair of them that the measured pairs tell (1 without any):

    d(block, form) = sum_p d(block, p) * prod_{p < q} factor(p, q)

A form that was measured has its measured effect. A block that was not is the sum of the measured ones in it, or has its
share of the layers of the measured one that it is in. How far the rule is off is measured by leaving out each effect in
turn: of the process in closed form (Rasmussen, Williams, *Gaussian Processes for Machine Learning*, eq. 5.12).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any

import numpy as np
import numpy.typing as npt

from results.analysis.form_parts import PARTS, Numbers, form_parts
from spaces.config import BlockConfig
from spaces.effects import Effect, Effects
from spaces.network import Network

__all__ = ["EffectModel"]

_Floats = npt.NDArray[np.float64]
_Point = tuple[str, str, Numbers]
"""A block, a part of a form, and the part's numbers."""

_LEAST, _SEEN = 1e-5, 1e-3
"""Effects below, in nats, count as this much: in the rule, and in how far it is off."""
_LEVEL = log(0.01), 3.0
"""Logarithm of an effect of which nothing is known, and its standard deviation."""
_BLOCK, _PART, _FORM, _OWN, _NOISE = 0.5, 1.5, 0.3, 0.5, 0.1
"""Standard deviations of log effects: a block's sensitivity, to one part, of a form in all blocks, in one block, and of
what nothing tells."""
_REACH = 0.7
"""How far forms resemble each other, in standard deviations of what they have in common with all others."""
_FACTOR, _PAIR_NOISE = 0.5, 0.4
"""Standard deviations of a pair's log factor, and of one measured pair around it."""


@dataclass(frozen=True, kw_only=True)
class _Known:
    """An effect as the rule sees it."""

    block: str
    parts: Mapping[str, Numbers]
    divergence: float
    error: float
    """Standard error of the logarithm."""


class EffectModel:
    """Predicts the loss increase of any config of any block of a network, in nats."""

    def __init__(self, network: Network, minimum_templates: int, known: Sequence[_Known], exact: Mapping[Any, float]):
        self._network, self._minimum = network, minimum_templates
        self._exact = exact
        self._singles = _Process([(k.block, *only, k.divergence, k.error) for k in known for only in _single(k)])
        self._pairs = [k for k in known if len(k.parts) > 1]
        self._logs: dict[_Point, float] = {}
        self._residuals = [log(k.divergence / sum(self._parts(k.block, k.parts))) for k in self._pairs]
        self._factors = _factors([tuple(k.parts) for k in self._pairs], self._residuals)
        self._measured = {k.block for k in known}
        self._left_out = [*self._singles.left_out(), *self._pairs_left_out()]

    @classmethod
    def fit(cls, effects: Effects, network: Network, minimum_templates: int | None = None) -> EffectModel:
        """Return the rule of a library; minimum templates are the library's own, unless others are asked about."""
        minimum = effects.minimum_templates
        known, exact = [], {}
        for effect in effects.effects:
            parts = form_parts(network, effect.block, effect.config, minimum)
            if parts:
                known.append(_known(effect, parts))
                exact[_key(network, effect.block, effect.config, minimum)] = effect.divergence
        return cls(network, minimum if minimum_templates is None else minimum_templates, known, exact)

    def loss_increase(self, block: str, config: BlockConfig) -> float:
        """Return by how many nats compressing this block alone raises the loss: what was measured, or the forecast.

        Raises `UsageError` for an unknown block, or a config that it cannot take.
        """
        exact = self._exact.get(_key(self._network, block, config, self._minimum))
        return self.predicted(block, config) if exact is None else exact

    def predicted(self, block: str, config: BlockConfig) -> float:
        """Return the forecast, whether or not it was measured."""
        if block not in self._measured and (inside := self._inside(block)):
            return sum(self.loss_increase(name, config) for name in inside)
        parts = form_parts(self._network, block, config, self._minimum)
        owner, share = self._owner(block)
        return share * sum(self._parts(owner, parts)) * exp(sum(self._factors.get(p, 0.0) for p in _pairs_of(parts)))

    @property
    def held_out_error(self) -> float:
        """Mean absolute error of the forecasts of measured effects in nats, each left out in turn; NaN without any."""
        return float(np.mean([abs(given - told) for given, told in self._left_out])) if self._left_out else float("nan")

    @property
    def held_out_factor(self) -> float:
        """The factor by which such a forecast is typically off: exp of the root mean square of the log ratio.

        Effects below a thousandth of a nat count as one.
        """
        ratios = [log(max(told, _SEEN) / max(given, _SEEN)) for given, told in self._left_out]
        return float(np.exp(np.sqrt(np.mean(np.square(ratios))))) if ratios else float("nan")

    @property
    def held_out(self) -> int:
        """How many effects were left out in turn."""
        return len(self._left_out)

    def _parts(self, block: str, parts: Mapping[str, Numbers]) -> Iterator[float]:
        """Yield the effect of each part by itself, as forecast."""
        points = [(block, part, numbers) for part, numbers in parts.items()]
        new = [point for point in points if point not in self._logs]
        if new:
            self._logs.update(zip(new, self._singles.forecast(new).tolist(), strict=True))
        return (exp(self._logs[point]) for point in points)

    def _pairs_left_out(self) -> Iterator[tuple[float, float]]:
        keys = [tuple(k.parts) for k in self._pairs]
        for index, known in enumerate(self._pairs):
            others = _factors(keys[:index] + keys[index + 1 :], self._residuals[:index] + self._residuals[index + 1 :])
            total = sum(self._parts(known.block, known.parts))
            yield known.divergence, total * exp(sum(others.get(pair, 0.0) for pair in _pairs_of(known.parts)))

    def _inside(self, block: str) -> list[str]:
        """Return the measured blocks that make up a block, none unless they are all of it."""
        inside = [name for name in sorted(self._measured) if name.startswith(f"{block}.")]
        covered = [layer for name in inside for layer in self._network.layers_in(name)]
        return inside if sorted(covered) == sorted(self._network.layers_in(block)) else []

    def _owner(self, block: str) -> tuple[str, float]:
        """Return the measured block that holds a block, and its share of that one's layers; itself if there is none."""
        parts = block.split(".")
        for depth in range(len(parts), 0, -1):
            name = ".".join(parts[:depth])
            if name in self._measured:
                return name, len(self._network.layers_in(block)) / len(self._network.layers_in(name))
        return block, 1.0


class _Process:
    """The Gaussian process over effects of single parts."""

    def __init__(self, known: Sequence[tuple[str, str, Numbers, float, float]]) -> None:
        """Take (block, part, numbers, effect, standard error of its logarithm) of each measurement."""
        self._points: list[_Point] = [(block, part, numbers) for block, part, numbers, _, _ in known]
        self._effects = np.array([effect for *_, effect, _ in known])
        self._logs = np.log(self._effects)
        noise = np.diag([_NOISE**2 + error**2 for *_, error in known])
        self._inverse = np.linalg.inv(_covariance(self._points, self._points) + noise) if known else np.zeros((0, 0))
        self._weights = self._inverse @ (self._logs - _prior(self._points))

    def forecast(self, points: Sequence[_Point]) -> _Floats:
        """Return the expected logarithms (m,) of effects."""
        if not self._points:
            return _prior(points)
        return _prior(points) + _covariance(points, self._points) @ self._weights

    def left_out(self) -> list[tuple[float, float]]:
        """Return each measured effect, and its forecast from all others."""
        told = np.exp(self._logs - self._weights / np.diag(self._inverse)) if self._points else self._logs
        return list(zip(self._effects.tolist(), told.tolist(), strict=True))


def _prior(points: Sequence[_Point]) -> _Floats:
    return np.array([_LEVEL[0] + float(np.dot(PARTS[part].slopes, numbers)) for _, part, numbers in points])


def _covariance(rows: Sequence[_Point], columns: Sequence[_Point]) -> _Floats:
    """Return the covariances (m, n) of the log effects of two lists of points."""
    same_block = _equal([p[0] for p in rows], [p[0] for p in columns])
    total = _BLOCK**2 * same_block
    for part, about in PARTS.items():
        here, there = ([i for i, point in enumerate(points) if point[1] == part] for points in (rows, columns))
        if not here or not there:
            continue
        x, y = (_numbers(points, at) for points, at in ((rows, here), (columns, there)))
        shared, own = np.square(about.shared), np.square(about.own)
        near = np.exp(-(np.square(x[:, None] - y[None]) * shared).sum(2) / (2 * _REACH**2))
        everywhere = _LEVEL[1] ** 2 + (x * shared) @ y.T + _FORM**2 * near
        in_block = _PART**2 + (x * own) @ y.T + _OWN**2 * near
        total[np.ix_(here, there)] += everywhere + same_block[np.ix_(here, there)] * in_block
    return total


def _numbers(points: Sequence[_Point], at: Sequence[int]) -> _Floats:
    return np.array([points[index][2] for index in at]).reshape(len(at), -1)


def _equal(rows: Sequence[str], columns: Sequence[str]) -> _Floats:
    return (np.array(rows, dtype=object)[:, None] == np.array(columns, dtype=object)[None]).astype(np.float64)


def _factors(keys: Sequence[tuple[str, ...]], residuals: Sequence[float]) -> dict[tuple[str, str], float]:
    """Return the log factor of each pair of parts, by ridge regression of what measured combinations are off by."""
    pairs = sorted({pair for key in keys for pair in _pairs_of(key)})
    if not pairs:
        return {}
    has = np.array([[pair in set(_pairs_of(key)) for pair in pairs] for key in keys], dtype=np.float64)
    gram = has.T @ has + (_PAIR_NOISE / _FACTOR) ** 2 * np.eye(len(pairs))
    return dict(zip(pairs, np.linalg.solve(gram, has.T @ np.array(residuals)).tolist(), strict=True))


def _pairs_of(parts: Mapping[str, Numbers] | Sequence[str]) -> Iterator[tuple[str, str]]:
    return itertools.combinations(sorted(parts), 2)


def _single(known: _Known) -> list[tuple[str, Numbers]]:
    return list(known.parts.items()) if len(known.parts) == 1 else []


def _known(effect: Effect, parts: Mapping[str, Numbers]) -> _Known:
    divergence = max(effect.divergence, _LEAST)
    error = 1.0 if effect.divergence < _LEAST else min(1.0, effect.divergence_error / divergence)
    return _Known(block=effect.block, parts=parts, divergence=divergence, error=error)


def _key(network: Network, block: str, config: BlockConfig, minimum: int) -> Any:
    return block, frozenset(network.block_forms(block, config, minimum).items())
