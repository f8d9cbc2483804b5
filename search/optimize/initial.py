"""The configs that a search tries first: the uncompressed network, the extremes, and what is known to be good.

The ladder is what a practitioner would write down at once: the same bits everywhere, as few coefficients as the papers
found enough but allocated to filters, pruned filters, and mixtures of them. Norms and biases have 8 bits wherever other
blocks have bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from layers import UsageError
from search.optimize.nearest import nearest
from spaces import BlockConfig, NetworkConfig, Preset, Space, presets
from spaces.network import NORMS_AND_BIASES
from spaces.space import BITS, EXPONENT_BLOCKS, NORM_BITS
from spaces.spelling import in_blocks

__all__ = ["FirstConfigs", "NamedConfig", "first_configs", "ladder"]

_PRESETS = 4
"""Papers' rows that a search begins with at most."""
_ROWS = 8
"""Papers' rows of the ladder at most, before bits."""
_FEW_BITS = (3, 2)
_RATES = (0.5, 0.75)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class NamedConfig:
    """A config that is known to be worth a trial."""

    name: str
    """What it is, in a few words."""
    config: NetworkConfig
    """Canonical, in the blocks of the space."""


@dataclass(frozen=True, kw_only=True)
class FirstConfigs:
    """What a search tries first. Some may lie outside its space or budget, or be equal."""

    at_once: Sequence[NetworkConfig] = ()
    """In this order, before all others."""
    offered: Sequence[NetworkConfig] = ()
    """To be weighed against all others at every draw."""


def first_configs(
    space: Space,
    model: str,
    extremes: Iterable[NetworkConfig],
    *,
    forecast: bool,
    sketches: Iterable[NetworkConfig] = (),
) -> FirstConfigs:
    """Return the uncompressed network, the extremes, what is known to be good, and what was sketched.

    The uncompressed network comes first. With a `forecast` all others compete by what it promises. Else they are tried
    at once, of the papers' rows up to four, evenly over their sizes. All are canonical and in the blocks of the space.
    """
    uncompressed = NetworkConfig(minimum_templates=space.minimum_templates)
    limits = [space.network.canonical(config) for config in extremes]
    if not forecast:
        return FirstConfigs(at_once=[uncompressed, *limits, *_few_rows(space, model), *sketches])
    rungs = [rung.config for rung in ladder(space, model)]
    return FirstConfigs(at_once=[uncompressed], offered=[*sketches, *rungs, *limits])


def _few_rows(space: Space, model: str) -> Iterator[NetworkConfig]:
    rows = {space.network.digest(preset.config): preset.config for preset in presets(model, space.network)}
    by_size = sorted(rows.values(), key=lambda config: space.network.cost(config).size_bytes)
    for config in _evenly(by_size, _PRESETS):
        try:
            yield space.spelled(config)
        except UsageError:
            continue


def ladder(space: Space, model: str) -> list[NamedConfig]:
    """Return what to try first in the order of writing, each network once, without the uncompressed one.

    Configs that the space lacks are the nearest that it has. Rows that treat the layers of a block differently are left
    out.
    """
    found: dict[str, NamedConfig] = {}
    for name, config in _rungs(space, model):
        try:
            legal = nearest(space, config)
        except UsageError:
            continue
        found.setdefault(space.network.digest(legal), NamedConfig(name=name, config=legal))
    found.pop(space.network.digest(NetworkConfig()), None)
    return list(found.values())


def _rungs(space: Space, model: str) -> Iterator[tuple[str, NetworkConfig]]:
    """Yield names and configs, some of which the space may lack."""
    plain = {block: BlockConfig() for block in space.network.blocks}
    less = {block: _one_less(space, block) for block in plain}
    pruned = {rate: {block: BlockConfig(pruning_rate=rate) for block in plain} for rate in _RATES}
    rows = list(_rows(space, model))
    minimum = space.minimum_templates
    for bits in _FEW_BITS:
        yield f"K - 1 harmonics per filter, {bits} bits", _config(less, bits, minimum)
    for bits in sorted(filter(None, BITS), reverse=True):
        yield f"{bits} bits", _config(plain, bits, minimum)
    for bits in _FEW_BITS:
        for row in rows:
            series = any(knobs.harmonics for knobs in row.config.blocks.values())
            name = f"{row.name} per filter" if series else row.name
            yield f"{name}, {bits} bits", _config({**plain, **_per_filter(row)}, bits, minimum)
    for rate, blocks in pruned.items():
        yield f"rate {rate:g}, {_FEW_BITS[0]} bits", _config(blocks, _FEW_BITS[0], minimum)
        yield f"rate {rate:g}", _config(blocks, None, minimum)
    for row in rows:
        yield row.name, row.config


def _config(blocks: dict[str, BlockConfig], bits: int | None, minimum_templates: int) -> NetworkConfig:
    """Return the config of these blocks with bits in each, and in norms and biases."""
    if bits is not None:
        blocks = {
            block: replace(knobs, bits=bits, exponent_block=EXPONENT_BLOCKS[0]) for block, knobs in blocks.items()
        }
        blocks[NORMS_AND_BIASES] = BlockConfig(bits=NORM_BITS[0])
    return NetworkConfig(blocks=blocks, minimum_templates=minimum_templates)


def _one_less(space: Space, block: str) -> BlockConfig:
    """Return the config of one harmonic less than a block has taps, per filter; 2 of 2 and 1 of 1 stay."""
    kernels = [space.network.shapes[layer].kernel for layer in space.network.blocks[block]]
    tall, wide = (max(kernel[axis] for kernel in kernels) for axis in (0, 1))
    if max(tall, wide) <= 2:
        return BlockConfig()
    y, x = (size - 1 if size > 2 else size for size in (tall, wide))
    return BlockConfig(basis="cosine", harmonics=(y, x), allocation="filter")


def _rows(space: Space, model: str) -> Iterator[Preset]:
    """Yield the papers' rows without bits, in the blocks of the space, the largest first, each network once."""
    network, rows = space.network, dict[str, Preset]()
    for preset in presets(model, network):
        if all(knobs.bits is None for knobs in preset.config.blocks.values()):
            rows.setdefault(network.digest(preset.config), preset)
    by_size = sorted(rows.values(), key=lambda row: -network.cost(row.config).size_bytes)
    for row in _evenly(by_size, _ROWS):
        try:
            yield replace(row, config=in_blocks(network, row.config))
        except UsageError:
            continue


def _per_filter(row: Preset) -> dict[str, BlockConfig]:
    return {
        block: knobs if knobs.harmonics is None else replace(knobs, allocation="filter")
        for block, knobs in row.config.blocks.items()
    }


def _evenly(values: Sequence[T], most: int) -> Sequence[T]:
    """Return at most so many of the values, at equal steps from the first on."""
    return values[:: max(1, -(-len(values) // most))]
