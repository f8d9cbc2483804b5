"""Costs that no trial may exceed: known before training, so that an over-budget config never takes a worker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from layers import Cost, UsageError
from spaces import BlockConfig, NetworkConfig, Space

__all__ = ["Budget", "extremes"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Upper limits, inclusive; `None` is no limit."""

    max_size: int | None = None
    """Largest `size_bytes`."""
    max_flops: int | None = None
    """Most `flops`."""

    def __post_init__(self) -> None:
        for name in ("max_size", "max_flops"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} (={value}) must be at least 1.")

    def fits(self, cost: Cost) -> bool:
        """Whether a network of this cost may be tried."""
        return (self.max_size is None or cost.size_bytes <= self.max_size) and (
            self.max_flops is None or cost.flops <= self.max_flops
        )

    def excess(self, cost: Cost) -> dict[str, float]:
        """By how much each limit is broken, as a share of it; 0 or less where it is kept."""
        limits = {"max_size": (self.max_size, cost.size_bytes), "max_flops": (self.max_flops, cost.flops)}
        return {name: value / limit - 1 for name, (limit, value) in limits.items() if limit is not None}

    def fit(self, costs: Mapping[str, npt.NDArray[np.float64]]) -> npt.NDArray[np.bool_]:
        """The same as `fits`, for costs by name (m,)."""
        limits = {"size_bytes": self.max_size, "flops": self.max_flops}
        kept = [costs[name] <= limit for name, limit in limits.items() if limit is not None]
        return np.logical_and.reduce([np.ones(len(costs["flops"]), dtype=bool), *kept])


def extremes(space: Space, budget: Budget) -> tuple[NetworkConfig, NetworkConfig]:
    """Of the configs that meet the budget that of fewest bytes, and that of least compute.

    Costs add up over blocks, so the lower front of (bytes, macs) of the network is built block by block, exactly.
    Raises `UsageError` where no config of the space meets the budget, with what is the least.
    """
    front: list[tuple[Cost, dict[str, BlockConfig]]] = [(space.network.rest, {})]
    for block in space.choices:
        choices = _lower_front((cost, config) for config, cost in space.block_costs(block).items())
        front = _lower_front(
            (total + cost, {**blocks, block: config}) for total, blocks in front for cost, config in choices
        )
    fitting = [blocks for cost, blocks in front if budget.fits(cost)]
    if not fitting:
        raise UsageError(
            f"The budget (max_size={budget.max_size}, max_flops={budget.max_flops}) is met by no config of the space, "
            f"whose least size is {front[0][0].size_bytes} bytes and least compute {front[-1][0].flops} flops."
        )
    smallest, quickest = (
        NetworkConfig(blocks=blocks, minimum_templates=space.minimum_templates) for blocks in (fitting[0], fitting[-1])
    )
    return smallest, quickest


def _lower_front(points: Iterable[tuple[Cost, T]]) -> list[tuple[Cost, T]]:
    """The points of which none has both fewer bytes and fewer macs, by rising bytes."""
    front: list[tuple[Cost, T]] = []
    for cost, value in sorted(points, key=lambda point: (point[0].size_bytes, point[0].macs)):
        if not front or cost.macs < front[-1][0].macs:
            front.append((cost, value))
    return front
