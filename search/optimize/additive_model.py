"""The network of least loss under limits of size and compute, by what compressing each block alone does.

Costs add up over blocks exactly, and the loss of a network before any training nearly does. So that network is a choice
of one form for each block, which is found to proven optimality as a mixed integer program (`scipy.optimize.milp`, which
is HiGHS).
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import moocore
import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from layers import Cost
from search.optimize.candidates import Floats, Ints
from search.study.budget import Budget
from spaces import BlockConfig, NetworkConfig, Space

__all__ = ["AdditiveModel", "Effect", "Sketch"]

Effect = Callable[[str, BlockConfig], float]
"""By how much the loss of the network rises if this block alone takes this form, in any spelling."""


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """A network that the additive model chose."""

    config: NetworkConfig
    """Canonical."""
    cost: Cost
    loss_increase: float
    """Predicted, in nats: the sum over its blocks."""


@dataclass(frozen=True, kw_only=True)
class _Option:
    block: str
    config: BlockConfig
    cost: Cost
    loss_increase: float


class AdditiveModel:
    """The forms of all blocks, each with its exact cost and its own effect on the loss."""

    def __init__(self, space: Space, effect: Effect) -> None:
        """Describe each form once, and drop those that another of the block beats in loss, bytes and arithmetic."""
        self._space = space
        self._options = [option for block in space.choices for option in _useful(_forms(space, block, effect))]
        rows = {block: row for row, block in enumerate(space.choices)}
        one_each = np.array([rows[option.block] for option in self._options]), np.arange(len(self._options))
        self._blocks = csr_array((np.ones(len(self._options)), one_each), shape=(len(rows), len(self._options)))
        self._losses = np.array([option.loss_increase for option in self._options])
        self._costs = _array(option.cost for option in self._options)
        self._rest = _array([space.network.rest])[0]

    @property
    def useful(self) -> int:
        """Number of forms that are left."""
        return len(self._options)

    def solve(self, budget: Budget) -> Sketch | None:
        """Return the network of least predicted loss among those that meet the budget, None if there is none.

        HiGHS works in floating point: a solution that breaks a limit by its rounding is forbidden, and the next found.
        """
        forbidden: list[Ints] = []
        while (chosen := self._solve(budget, forbidden)) is not None:
            sketch = self._sketch([self._options[index] for index in chosen])
            if budget.fits(sketch.cost):
                return sketch
            forbidden.append(chosen)
        return None

    def _solve(self, budget: Budget, forbidden: Sequence[Ints]) -> Ints | None:
        constraints = [LinearConstraint(self._blocks, 1, 1), *self._limits(budget)]
        for chosen in forbidden:
            constraints.append(
                LinearConstraint(np.isin(np.arange(len(self._options)), chosen)[None], ub=len(chosen) - 1)
            )
        scale = max(float(np.abs(self._losses).max()), 1e-12)
        with _quiet():
            found = milp(
                self._losses / scale,
                integrality=np.ones(len(self._options)),
                bounds=Bounds(0, 1),
                constraints=constraints,
                options={"mip_rel_gap": 0.0},
            )
        return None if found.x is None else np.flatnonzero(found.x > 0.5)

    def _limits(self, budget: Budget) -> Iterator[LinearConstraint]:
        """Yield the limits in shares of what they leave to the blocks."""
        for column, limit in enumerate((budget.max_size, budget.max_flops)):
            if limit is not None:
                left = limit - self._rest[column]
                yield LinearConstraint(self._costs[None, :, column] / max(1.0, abs(left)), ub=np.sign(left))

    def _sketch(self, options: Sequence[_Option]) -> Sketch:
        spelled = NetworkConfig(
            blocks={option.block: option.config for option in options}, minimum_templates=self._space.minimum_templates
        )
        return Sketch(
            config=self._space.network.canonical(spelled),
            cost=sum((option.cost for option in options), self._space.network.rest),
            loss_increase=sum(option.loss_increase for option in options),
        )


def _forms(space: Space, block: str, effect: Effect) -> list[_Option]:
    """Return the forms that a block can take, each once, in the first spelling."""
    spellings: dict[frozenset[Any], BlockConfig] = {}
    for config in space.block_configs(block):
        forms = space.network.block_forms(block, config, space.minimum_templates)
        spellings.setdefault(frozenset(forms.items()), config)
    return [
        _Option(
            block=block,
            config=config,
            cost=space.network.block_cost(block, config, space.minimum_templates),
            loss_increase=float(effect(block, config)),
        )
        for config in spellings.values()
    ]


def _useful(options: Sequence[_Option]) -> list[_Option]:
    losses = [option.loss_increase for option in options]
    points = np.column_stack([losses, _array(option.cost for option in options)])
    return list(itertools.compress(options, moocore.is_nondominated(points, keep_weakly=False)))


def _array(costs: Iterable[Cost]) -> Floats:
    """Return sizes and FLOPs (n, 2)."""
    return np.array([(cost.size_bytes, cost.flops) for cost in costs], dtype=np.float64)


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what is printed meanwhile: HiGHS says a line now and then whatever its options, where answers go."""
    library = ctypes.CDLL(None)
    library.fflush(None)
    try:
        kept = os.dup(1)
    except OSError:  # there is no output
        yield
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    try:
        yield
    finally:
        library.fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)
