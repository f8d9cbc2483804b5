"""Costs that no trial may exceed. They are known before training, so a config over budget never takes a worker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from layers.errors import UsageError
from spaces.config import BlockConfig, NetworkConfig

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from layers.cost import Cost
    from spaces import Space

__all__ = ["Budget", "extremes", "may_try"]

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
                raise UsageError(f"{name} (={value}) must be at least 1")

    def fits(self, cost: Cost) -> bool:
        """Return whether a network of this cost may be tried."""
        return (self.max_size is None or cost.size_bytes <= self.max_size) and (
            self.max_flops is None or cost.flops <= self.max_flops
        )

    def excess(self, cost: Cost) -> dict[str, float]:
        """Return by how much each limit is broken, as a share of it; 0 or less if it is kept."""
        limits = {"max_size": (self.max_size, cost.size_bytes), "max_flops": (self.max_flops, cost.flops)}
        return {name: value / limit - 1 for name, (limit, value) in limits.items() if limit is not None}

    def fits_each(self, costs: Mapping[str, npt.NDArray[np.float64]]) -> npt.NDArray[np.bool_]:
        """Return which of m networks may be tried (m,), from their costs by name (m,)."""
        import numpy as np

        limits = {"size_bytes": self.max_size, "flops": self.max_flops}
        within = [costs[name] <= limit for name, limit in limits.items() if limit is not None]
        return np.logical_and.reduce([np.ones(len(costs["flops"]), dtype=bool), *within])


def may_try(config: NetworkConfig, space: Space, budget: Budget) -> bool:
    """Return whether a config lies in the space and meets the budget."""
    try:
        space.encode(config)
    except UsageError:
        return False
    return budget.fits(space.network.cost(config))


def extremes(space: Space, budget: Budget) -> tuple[NetworkConfig, NetworkConfig]:
    """Return the config of fewest bytes, and that of least compute, among those that meet the budget.

    Costs add up over blocks, so the lower front of (bytes, macs) of the network is built block by block, exactly.
    Raises `UsageError` if no config of the space meets the budget, and names the least costs of the space.
    """
    front: list[tuple[Cost, dict[str, BlockConfig]]] = [(space.network.rest, {})]
    known: dict[object, list[tuple[Cost, BlockConfig]]] = {}
    for block, knobs in space.choices.items():
        shapes = tuple(space.network.shapes.get(name) for name in space.network.layers_in(block))
        alike = (
            block if None in shapes else shapes,
            *knobs.items(),
        )  # blocks of equal layers and choices cost the same
        if alike not in known:
            known[alike] = _lower_front((cost, config) for config, cost in space.block_costs(block).items())
        choices = known[alike]
        front = _lower_front(
            (total + cost, {**blocks, block: config}) for total, blocks in front for cost, config in choices
        )
    fitting = [blocks for cost, blocks in front if budget.fits(cost)]
    if not fitting:
        raise UsageError(
            f"no config of the space meets the budget (max_size={budget.max_size}, max_flops={budget.max_flops}): "
            f"the least size is {front[0][0].size_bytes} bytes, the least compute {front[-1][0].flops} flops"
        )
    smallest, quickest = (
        NetworkConfig(blocks=blocks, minimum_templates=space.minimum_templates) for blocks in (fitting[0], fitting[-1])
    )
    return smallest, quickest


def _lower_front(points: Iterable[tuple[Cost, T]]) -> list[tuple[Cost, T]]:
    """Return the points that no other point beats in both bytes and macs, by rising bytes."""
    front: list[tuple[Cost, T]] = []
    for cost, value in sorted(points, key=lambda point: (point[0].size_bytes, point[0].macs)):
        if not front or cost.macs < front[-1][0].macs:
            front.append((cost, value))
    return front
