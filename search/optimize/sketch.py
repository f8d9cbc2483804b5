"""A front before any training: the solutions of the additive model under a grid of limits, and the few to measure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import moocore
import numpy as np

from layers import Cost
from search.optimize.additive_model import AdditiveModel, Effect, Sketch
from search.optimize.candidates import Floats
from search.study.budget import Budget, extremes
from spaces import NetworkConfig, Space

__all__ = ["sketch_front"]

_LIMITS = {"size_bytes": 16, "flops": 6}
"""Limits of each cost in a grid."""
_FINER = (1, 3)
"""How many times as fine the grid is, if a coarser one gives too few networks."""
_BEYOND = 1.1
"""Reference point of all axes of the hypervolume that networks are chosen by."""


def sketch_front(
    space: Space,
    effect: Effect,
    budget: Budget,
    *,
    points: int,
    worst: float,
    costs: Sequence[str] = tuple(_LIMITS),
) -> list[Sketch]:
    """Return up to this many networks spread along the predicted front, the most telling first.

    The first ones are the same however many are asked for. Limits are a grid, even on log axes, of these `costs` from
    the least that a config within the budget has to the uncompressed network's. Networks whose loss is predicted to
    rise by more than `worst` come only where others are too few, the uncompressed network never. Raises `UsageError` if
    no config of the space meets the budget.
    """
    least = [space.network.cost(config) for config in extremes(space, budget)]
    ranges = [_range(name, least, space.network.cost(NetworkConfig())) for name in _LIMITS]
    solved = _Solved(AdditiveModel(space, effect))
    chosen: list[Sketch] = []
    for finer in _FINER:
        before = len(solved.networks)
        for limits in _grid(ranges, budget, costs, finer):
            solved.add(limits)
        front = _nondominated(list(solved.networks.values()), costs)
        _spread([sketch for sketch in front if sketch.loss_increase <= worst], chosen, points, costs)
        if len(chosen) == points or len(solved.networks) == before:
            break
    others = [sketch for sketch in solved.networks.values() if sketch not in chosen]
    return [*chosen, *sorted(others, key=lambda sketch: sketch.loss_increase)[: points - len(chosen)]]


class _Solved:
    """The solutions of some limits. One of looser limits is that of tighter ones too, if it meets them."""

    def __init__(self, model: AdditiveModel) -> None:
        self._model = model
        self._solutions: list[tuple[Floats, Sketch | None]] = []
        self.networks: dict[tuple[Cost, float], Sketch] = {}
        """Those found, the uncompressed network left out."""

    def add(self, budget: Budget) -> None:
        """Solve the model under these limits unless the solution is known."""
        limits = np.array([np.inf if limit is None else limit for limit in (budget.max_size, budget.max_flops)])
        for looser, sketch in self._solutions:
            if (looser >= limits).all() and (sketch is None or budget.fits(sketch.cost)):
                return
        sketch = self._model.solve(budget)
        self._solutions.append((limits, sketch))
        if sketch is not None and sketch.config.blocks:
            self.networks.setdefault((sketch.cost, sketch.loss_increase), sketch)


def _range(name: str, least: Iterable[Cost], uncompressed: Cost) -> tuple[int, int]:
    most = int(getattr(uncompressed, name))
    return min(most, *(int(getattr(cost, name)) for cost in least)), most


def _grid(ranges: Sequence[tuple[int, int]], budget: Budget, costs: Sequence[str], finer: int) -> Iterator[Budget]:
    """Yield the limits of a grid within the budget, from the loosest on."""
    axes: list[list[int | None]] = []
    for (least, most), limit, (name, count) in zip(
        ranges, (budget.max_size, budget.max_flops), _LIMITS.items(), strict=True
    ):
        steps = np.geomspace(min(most, limit or most), least, (count - 1) * finer + 1) if name in costs else ()
        axes.append([limit, *(int(step) for step in steps[1:-1]), *([least] if name in costs else [])])
    for max_size, max_flops in itertools.product(*axes):
        yield Budget(max_size=max_size, max_flops=max_flops)


def _nondominated(sketches: Sequence[Sketch], costs: Sequence[str]) -> list[Sketch]:
    """Return those that no other beats in predicted loss and these costs."""
    points = np.array([[sketch.loss_increase, *_named(sketch.cost, costs)] for sketch in sketches])
    return list(itertools.compress(sketches, moocore.is_nondominated(points))) if sketches else []


def _spread(front: Sequence[Sketch], chosen: list[Sketch], points: int, costs: Sequence[str]) -> None:
    """Add members of a front to those chosen, up to this many, each time that of the largest gain in hypervolume.

    Its axes are one minus the factor by which the true class's probability falls, and logarithms of costs, each from 0
    to 1.
    """
    every = [*chosen, *(sketch for sketch in front if sketch not in chosen)]
    if len(every) == len(chosen):
        return
    logs = np.log([_named(sketch.cost, costs) for sketch in every])
    doubts = 1 - np.exp([-sketch.loss_increase for sketch in every])
    places = np.column_stack([doubts, (logs - logs.min(axis=0)) / np.maximum(np.ptp(logs, axis=0), 1e-9)])
    volume = moocore.Hypervolume(ref=np.full(places.shape[1], _BEYOND))
    taken, rest = list(range(len(chosen))), list(range(len(chosen), len(every)))
    while rest and len(chosen) < points:
        best = max(rest, key=lambda index: float(volume(places[[*taken, index]])))
        rest.remove(best)
        taken.append(best)
        chosen.append(every[best])


def _named(cost: Cost, costs: Sequence[str]) -> list[float]:
    return [float(getattr(cost, name)) for name in costs]
