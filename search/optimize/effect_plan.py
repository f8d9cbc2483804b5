"""Which effects are measured, the most informative first (`results.analysis.effects` tells all others from them).

Each block has a list of its forms in the space, and the lists take turns: first every block's first form, then every
block's second one. A list begins with half of the filters as templates, half of the coefficients for each filter, the
fewest bits, and half of the harmonics, which tell how sensitive the block is to each; what bits cost is told best by
the rule, so they need not be first. Then come the ends of these curves, some combinations, and all the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from spaces import BlockConfig, NetworkConfig, Space

__all__ = ["effect_plan"]

_HALF = 0.5


def effect_plan(space: Space) -> Iterator[tuple[str, BlockConfig]]:
    """Yield blocks and canonical configs of them, each form once, the most informative first."""
    lists = [[(block, config) for config in _block_plan(space, block)] for block in space.choices]
    for turn in itertools.zip_longest(*lists):
        yield from (pair for pair in turn if pair is not None)


def _block_plan(space: Space, block: str) -> Iterator[BlockConfig]:
    """Yield the forms of one block."""
    seen = {frozenset[Any]()}
    for config in _spelled(space, block):
        blocks = space.network.canonical(
            NetworkConfig(blocks={block: config}, minimum_templates=space.minimum_templates)
        ).blocks
        canonical = blocks.get(block, BlockConfig())
        forms = frozenset(space.network.block_forms(block, canonical, space.minimum_templates).items())
        if forms not in seen:
            seen.add(forms)
            yield canonical


def _spelled(space: Space, block: str) -> Iterator[BlockConfig]:
    """Yield forms of a block in the order of the plan; some are equal."""
    parts = _Parts(space, block)
    bits, series, allocated, rates = parts.bits(), parts.series(None), parts.series("filter"), parts.rates()
    leading = [part[:1] for part in (rates, allocated, bits, series)]
    yield from itertools.chain(*leading)
    yield from itertools.chain(*(part[1:2] for part in (series, rates, bits, allocated)))
    yield from parts.others()
    yield from itertools.starmap(_combined, itertools.product(bits[:1], (allocated or series)[:1]))
    yield from itertools.starmap(_combined, itertools.product(bits[:1], rates[:1]))
    yield from itertools.starmap(_combined, itertools.product(series[:1], rates[:1]))
    for singles in itertools.zip_longest(*(part[2:] for part in (series, rates, bits, allocated))):
        yield from (config for config in singles if config is not None)


class _Parts:
    """The forms of a block that have one part alone, each part's most telling ones first."""

    def __init__(self, space: Space, block: str) -> None:
        self._choices: Mapping[str, Any] = space.choices[block]
        layers = [space.network.shapes[name] for name in space.network.blocks.get(block, ())]
        self._kernel = tuple(max((shape.kernel[axis] for shape in layers), default=1) for axis in (0, 1))

    def bits(self) -> list[BlockConfig]:
        """Return the fewest first, then the most, then those between; so of each format."""
        values = sorted(value for value in self._choices.get("bits", ()) if isinstance(value, int))
        order = _ends_first(values)
        knobs = {name: self._choices.get(name, (None,)) for name in ("exponent_block", "exponent_axis", "scale")}
        formats = [dict(zip(knobs, combination, strict=True)) for combination in itertools.product(*knobs.values())]
        return [BlockConfig(bits=value, **form) for form in formats for value in order]

    def series(self, allocation: str | None) -> list[BlockConfig]:
        """Return half of the harmonics first, then the fewest, then most, then the others; so of each basis."""
        if allocation not in self._choices.get("allocation", (None,)):
            return []
        pairs = itertools.product(self._choices.get("harmonics_y", ()), self._choices.get("harmonics_x", ()))
        whole = self._kernel[0] * self._kernel[1]
        fewer = sorted((y * x / whole, y, x) for y, x in pairs if y * x < whole)
        order = _middle_and_ends_first(fewer, [abs(share - _HALF) for share, *_ in fewer])
        bases = self._choices.get("basis", ("cosine",))
        options: Any = {"allocation": allocation}
        return [BlockConfig(basis=basis, harmonics=(y, x), **options) for basis in bases for _, y, x in order]

    def rates(self) -> list[BlockConfig]:
        """Return the rate nearest to a half first, the highest, the lowest, the others; so of each kind."""
        values = sorted((v for v in self._choices.get("pruning_rate", ()) if isinstance(v, float)), reverse=True)
        order = _middle_and_ends_first(values, [abs(value - _HALF) for value in values])
        knobs: Any = {name: self._choices.get(name, (None,)) for name in ("groups", "transform")}
        forms = [dict(zip(knobs, combination, strict=True)) for combination in itertools.product(*knobs.values())]
        return [BlockConfig(pruning_rate=rate, **form) for form in forms for rate in order]

    def others(self) -> list[BlockConfig]:
        """Return rounded inputs, fewest bits first, and other arithmetic."""
        values = sorted(v for v in self._choices.get("activation_bits", ()) if isinstance(v, int))
        blocks = self._choices.get("activation_block", (None,))
        inputs = [BlockConfig(activation_bits=v, activation_block=b) for b in blocks for v in _ends_first(values)]
        arithmetics = [name for name in self._choices.get("arithmetic", ()) if name not in (None, "float")]
        return [*inputs, *(BlockConfig(arithmetic=name) for name in arithmetics)]


def _ends_first(values: Sequence[Any]) -> list[Any]:
    return [*values[:1], *values[:0:-1]]


def _middle_and_ends_first(values: Sequence[Any], distances: Sequence[float]) -> list[Any]:
    """Return the values, the nearest first, then the first and the last, then the others by distance."""
    if not values:
        return []
    by_distance = [values[index] for index in sorted(range(len(values)), key=lambda index: distances[index])]
    return list(dict.fromkeys([by_distance[0], values[0], values[-1], *by_distance]))


def _combined(one: BlockConfig, other: BlockConfig) -> BlockConfig:
    return replace(one, **{name: value for name, value in asdict(other).items() if value is not None})
