"""What a network's score is expected to be before anything of it was trained: the effects of its blocks added up.

The effect of a block is how much the logarithm of the error is expected to rise where it alone is compressed and
calibrated. Effects of several blocks about add up. How much of them training takes back depends on what was done: it
mends a coarser series and missing filters better than few bits. So what each kind of knob adds is a sum of its own, and
the study's trials tell how much of it stays (`search.optimize.surrogate`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import log1p, sqrt
from operator import attrgetter
from typing import Any

from results.analysis.effects import EffectModel
from spaces import BlockConfig

__all__ = ["Forecast"]

_KINDS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("basis", "harmonics", "allocation"), 0.3),
    (("pruning_rate", "groups", "transform"), 0.15),
    (("bits", "exponent_block", "exponent_axis", "scale"), 0.4),
    (("activation_bits", "activation_block", "arithmetic"), 0.4),
)
"""Knobs of one kind, and how much of their effect is expected to stay after training."""
_VALUES = [attrgetter(*knobs) for knobs, _ in _KINDS]
_CHANGED = 0.3
"""Share of images whose class changes, for each root of a nat by which outputs diverge."""
_FLOOR = 0.01
"""Least error that a network counts as having."""
_TOGETHER = 0.15
"""The same of what kinds do together beyond what each does alone."""


@dataclass(frozen=True)
class Forecast:
    """The effects of single blocks, by kind of knob."""

    effect: Callable[[str, BlockConfig], float]
    """How much the logarithm of the error rises where a block alone has this config, before any training."""
    reference: float
    """Score of the uncompressed network."""
    slopes: tuple[float, ...] = (*(slope for _, slope in _KINDS), _TOGETHER)
    """How much of each value is expected to stay after training."""

    @classmethod
    def of(cls, model: EffectModel, reference: float) -> Forecast:
        """Return the forecast of measured effects, for a network whose score is `reference` as it was.

        A divergence of outputs grows with the square of how far they move, and the images whose class changes about
        with the distance itself. That is taken as a share of the error that the network has anyway.
        """
        return cls(_Rise(model, 1 - reference + _FLOOR), reference)

    def __call__(self, block: str, config: BlockConfig) -> tuple[float, ...]:
        """Return what each kind of knob of a block does alone, and what they do together beyond that.

        Knobs of the config may be without effect.
        """
        parts = [_part(knobs, values(config)) for (knobs, _), values in zip(_KINDS, _VALUES, strict=True)]
        alone = [0.0 if part is None else self.effect(block, part) for part in parts]
        several = parts.count(None) < len(parts) - 1
        return (*alone, self.effect(block, config) - sum(alone) if several else 0.0)


class _Rise:
    """The rise of a network's log error that a block's effect brings, each computed once; Ray Tune pickles it."""

    def __init__(self, model: EffectModel, error: float) -> None:
        self._model, self._error = model, error
        self._known = dict[tuple[str, BlockConfig], float]()

    def __call__(self, block: str, config: BlockConfig) -> float:
        if (block, config) not in self._known:
            moved = sqrt(max(0.0, self._model.loss_increase(block, config)))
            self._known[block, config] = log1p(_CHANGED * moved / self._error)
        return self._known[block, config]


@lru_cache(maxsize=1 << 12)
def _part(knobs: tuple[str, ...], values: tuple[Any, ...]) -> BlockConfig | None:
    """Return the config that has these knobs alone, None if they do nothing."""
    return BlockConfig(**dict(zip(knobs, values, strict=True))) if any(v is not None for v in values) else None
