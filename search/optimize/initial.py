"""The configs that a search tries first: the uncompressed network, the extremes of the space, and the papers' rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from spaces import NetworkConfig, Space, presets

__all__ = ["initial_configs"]

_PRESETS = 4


def initial_configs(space: Space, model: str, extremes: Iterable[NetworkConfig]) -> Iterator[NetworkConfig]:
    """Yield the uncompressed network, the extremes, and up to four of the papers' rows, evenly over their sizes.

    All are canonical. Some may lie outside the space or a budget, or be equal.
    """
    yield NetworkConfig(minimum_templates=space.minimum_templates)
    yield from map(space.network.canonical, extremes)
    rows = {space.network.digest(preset.config): preset.config for preset in presets(model, space.network)}
    by_size = sorted(rows.values(), key=lambda config: space.network.cost(config).size_bytes)
    yield from by_size[:: max(1, -(-len(by_size) // _PRESETS))]
