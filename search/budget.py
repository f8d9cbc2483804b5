"""Costs that no trial may exceed: known before training, so that an over-budget config never takes a worker."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from layers import Cost, UsageError
from spaces import BlockConfig, NetworkConfig, Space

__all__ = ["Budget", "cheapest_within"]

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


def cheapest_within(space: Space, budget: Budget) -> NetworkConfig:
    """A config of the space that meets the budget, with as few bytes as its limit on flops allows.

    Costs add up over blocks, so the lower front of (bytes, macs) of the network is built block by block, exactly.
    Raises `UsageError` where no config of the space meets the budget, with what is the least.
    """
    front: list[tuple[Cost, dict[str, BlockConfig]]] = [(space.network.rest, {})]
    for block in space.choices:
        choices = _lower_front((cost, config) for config, cost in space.block_costs(block).items())
        front = _lower_front(
            (total + cost, {**blocks, block: config}) for total, blocks in front for cost, config in choices
        )
    for cost, blocks in front:
        if budget.fits(cost):
            return NetworkConfig(blocks=blocks, minimum_templates=space.minimum_templates)
    least = min(cost.flops for cost, _ in front)
    raise UsageError(
        f"The budget (max_size={budget.max_size}, max_flops={budget.max_flops}) is met by no config of the space, "
        f"whose least size is {front[0][0].size_bytes} bytes and least compute {least} flops."
    )


def _lower_front(points: Iterable[tuple[Cost, T]]) -> list[tuple[Cost, T]]:
    """The points of which none has both fewer bytes and fewer macs, by rising bytes."""
    front: list[tuple[Cost, T]] = []
    for cost, value in sorted(points, key=lambda point: (point[0].size_bytes, point[0].macs)):
        if not front or cost.macs < front[-1][0].macs:
            front.append((cost, value))
    return front
