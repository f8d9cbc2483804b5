"""The search space: which values each knob of each block may take, and how a config is written in them.

Knobs are flat names `BLOCK.KNOB` with a fixed set of plain values, whatever the other knobs say, so that any sampler
can draw them; values without effect collapse when a config is made canonical. `decode` and `encode` are inverse on
canonical configs that lie in the space.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from layers import Cost, UsageError
from layers.form import ALLOCATIONS, MOST_TAPS
from layers.series.basis import FAMILIES, basis_name
from spaces.config import BlockConfig, NetworkConfig
from spaces.network import NORMS_AND_BIASES, Network

__all__ = ["KNOBS", "Space", "Value"]

Value = str | int | float | None

_EXPONENTS = ("exponent_block", "exponent_axis", "activation_block")
_TEMPLATES = ("pruning_rate", "groups", "transform")
KNOBS = ("basis", "harmonics_y", "harmonics_x", "allocation", *_TEMPLATES, "bits", *_EXPONENTS)
PRUNING_RATES = (None, 0.25, 0.5, 0.75, 0.875)
GROUPS = (1, 2, 4)
TRANSFORMS = ("scalar",)
BITS = (4, 6, 8, None)
EXPONENT_BLOCKS = (16,)
EXPONENT_AXES = ("flat",)
ACTIVATION_BLOCKS = (1,)
VECTOR_BITS = (8, None)


@dataclass(frozen=True, kw_only=True)
class Space:
    """Choices of every knob of every block of a network; more than one choice makes it a dimension of the search."""

    network: Network
    choices: Mapping[str, Mapping[str, tuple[Value, ...]]]
    """Block -> knob -> values, ordered where order means something (not in `basis`, `transform`, `exponent_axis`)."""
    minimum_templates: int = 8

    @classmethod
    def default(cls, network: Network, minimum_templates: int = 8) -> Space:
        """What each block can legally take, the uncompressed network included; of some knobs a selection."""
        choices = {block: _legal(network, block, minimum_templates) for block in network.blocks}
        vectors = {NORMS_AND_BIASES: {"bits": VECTOR_BITS}} if network.layers_in(NORMS_AND_BIASES) else {}
        return cls(network=network, choices={**choices, **vectors}, minimum_templates=minimum_templates)

    def restrict(self, limits: Mapping[str, Any]) -> Space:
        """The space with some knobs limited: `{block or "all": {knob: [values]}}`; `harmonics` stands for both axes.

        Knobs of which the default space has a selection take any value that the layers can.
        Raises `UsageError` naming a block, knob or value that the network cannot take.
        """
        choices = {block: dict(knobs) for block, knobs in self.choices.items()}
        for block, knobs in sorted(limits.items(), key=lambda item: item[0] != "all"):
            if block != "all" and block not in choices:
                raise UsageError(f"space names the block {block!r}; the network has {', '.join(choices)}.")
            for name in [block] if block != "all" else choices:
                for knob, values in _axes(knobs, block):
                    if knob in choices[name]:
                        choices[name][knob] = _limit(self, name, knob, values)
                    elif block != "all":
                        raise UsageError(
                            f"space.{block} has the knob {knob!r}, the block takes {_words(choices[name])}."
                        )
        return Space(network=self.network, choices=choices, minimum_templates=self.minimum_templates)

    @property
    def knobs(self) -> dict[str, tuple[Value, ...]]:
        """Flat names of all knobs with their values."""
        return {f"{block}.{knob}": values for block, knobs in self.choices.items() for knob, values in knobs.items()}

    @property
    def size(self) -> int:
        """Number of points, before spellings of one network collapse."""
        return prod(len(values) for values in self.knobs.values())

    def decode(self, values: Mapping[str, Value]) -> NetworkConfig:
        """The canonical config of one value a knob; knobs that are not named take their first value."""
        blocks = {block: self.block_config(block, values) for block in self.choices}
        return self.network.canonical(NetworkConfig(blocks=blocks, minimum_templates=self.minimum_templates))

    def block_config(self, block: str, values: Mapping[str, Value]) -> BlockConfig:
        """The config of one block as these values spell it, knobs without effect among them."""
        return _block({knob: values.get(f"{block}.{knob}", kinds[0]) for knob, kinds in self.choices[block].items()})

    def encode(self, config: NetworkConfig) -> dict[str, Value]:
        """One value a knob that decodes to the config; `UsageError` where it lies outside the space."""
        values = {}
        for block, knobs in self.choices.items():
            asked = config.blocks.get(block, BlockConfig())
            for knob, allowed in knobs.items():
                value = self._value(block, knob, asked)
                spare = knob == "basis" or (value is None and knob in ("groups", "transform", *_EXPONENTS))
                alike = (value,) if value in allowed else self._alike(block, knob, asked)
                if not alike and not spare:
                    raise UsageError(f"{block}.{knob} (={value}) must be one of {_words(allowed)}.")
                values[f"{block}.{knob}"] = (*alike, *allowed)[0]
        if self.network.digest(self.decode(values)) != self.network.digest(config):
            raise UsageError("The config lies outside the space: a knob that the space holds fixed differs.")
        return values

    def block_configs(self, block: str) -> Iterator[BlockConfig]:
        """Every combination of one block's knobs."""
        knobs = self.choices[block]
        for values in itertools.product(*knobs.values()):
            yield _block(dict(zip(knobs, values, strict=True)))

    def block_costs(self, block: str) -> dict[BlockConfig, Cost]:
        """Cost of the block in each of its forms."""
        return {c: self.network.block_cost(block, c, self.minimum_templates) for c in self.block_configs(block)}

    def _alike(self, block: str, knob: str, asked: BlockConfig) -> tuple[Value, ...]:
        """Choices of a knob that make of the block what is asked, where a canonical config may not name it."""
        if knob not in ("transform", *_EXPONENTS):
            return ()

        def fits(value: Any) -> bool:
            return self.network.equivalent(block, asked, replace(asked, **{knob: value}), self.minimum_templates)

        return tuple(filter(fits, self.choices[block][knob]))

    def _value(self, block: str, knob: str, config: BlockConfig) -> Value:
        if knob in ("harmonics_y", "harmonics_x"):
            axis = 0 if knob == "harmonics_y" else 1
            largest = max(self.network.shapes[layer].kernel[axis] for layer in self.network.blocks[block])
            return largest if config.harmonics is None else config.harmonics[axis]
        value: Value = getattr(config, knob)
        return value


def _legal(network: Network, block: str, minimum_templates: int) -> dict[str, tuple[Value, ...]]:
    shapes = [network.shapes[name] for name in network.blocks[block]]
    convs = [shape for shape in shapes if shape.kind == "conv2d"]
    knobs: dict[str, tuple[Value, ...]] = {}
    tall, wide = (max((shape.kernel[axis] for shape in convs), default=1) for axis in (0, 1))
    if max(tall, wide) > 1:
        knobs["basis"] = FAMILIES
        knobs["harmonics_y"], knobs["harmonics_x"] = tuple(range(1, tall + 1)), tuple(range(1, wide + 1))
        if all(prod(shape.kernel) <= MOST_TAPS for shape in convs):
            knobs["allocation"] = (None, *ALLOCATIONS)
    rates = _distinct_rates(network, block, minimum_templates) if convs else (None,)
    if len(rates) > 1:
        knobs["pruning_rate"] = rates
        knobs["groups"] = tuple(g for g in GROUPS if all(shape.filter_channels % g == 0 for shape in convs))
        knobs["transform"] = TRANSFORMS
    knobs["bits"], knobs["exponent_block"] = BITS, EXPONENT_BLOCKS
    knobs["exponent_axis"], knobs["activation_block"] = EXPONENT_AXES, ACTIVATION_BLOCKS
    return knobs


def _distinct_rates(network: Network, block: str, minimum_templates: int) -> tuple[Value, ...]:
    """Pruning rates that leave different numbers of templates."""
    seen, rates = [], []
    for rate in PRUNING_RATES:
        forms = network.block_forms(block, BlockConfig(pruning_rate=rate), minimum_templates)
        if forms not in seen:
            seen.append(forms)
            rates.append(rate)
    return tuple(rates)


def _block(values: Mapping[str, Any]) -> BlockConfig:
    harmonics = (values["harmonics_y"], values["harmonics_x"]) if "harmonics_y" in values else None
    rate, bits = values.get("pruning_rate"), values.get("bits")
    return BlockConfig(
        basis=values["basis"] if harmonics else None,
        harmonics=harmonics,
        allocation=values.get("allocation") if harmonics else None,
        pruning_rate=rate,
        groups=values.get("groups") if rate is not None else None,
        transform=values.get("transform") if rate is not None else None,
        bits=bits,
        **{knob: values.get(knob) if bits is not None else None for knob in _EXPONENTS},
    )


def _axes(knobs: Any, block: str) -> Iterator[tuple[str, tuple[Value, ...]]]:
    if not isinstance(knobs, Mapping):
        raise UsageError(f"space.{block} (={knobs!r}) must be a mapping of knobs to lists of values.")
    for knob, values in knobs.items():
        values = tuple(values) if isinstance(values, list | tuple) else (values,)
        if not all(value is None or isinstance(value, str | int | float) for value in values):
            raise UsageError(f"space.{block}.{knob} (={list(values)}) must be a list of plain values.")
        for name in ("harmonics_y", "harmonics_x") if knob == "harmonics" else (knob,):
            if name not in KNOBS:
                close = difflib.get_close_matches(name, KNOBS, n=1) or KNOBS
                raise UsageError(f"space.{block} has the knob {knob!r}, allowed are harmonics and {', '.join(close)}.")
            yield name, values


_SELECTIONS = ("basis", *_TEMPLATES, "bits", *_EXPONENTS)
"""Knobs whose default choices are a selection: other values may be asked for, where the layers can take them."""


def _limit(space: Space, block: str, knob: str, values: tuple[Value, ...]) -> tuple[Value, ...]:
    """The values, each once, after a look at whether the block's layers can take each of them."""
    legal = space.choices[block][knob]
    values = tuple(dict.fromkeys(None if value == "none" else value for value in values))
    if not values or (knob not in _SELECTIONS and any(value not in legal for value in values)):
        raise UsageError(f"space.{block}.{knob} (={list(values)}) must be a list of values among {_words(legal)}.")
    for value in values if knob in _SELECTIONS else ():
        others: dict[str, Any] = {"basis": "cosine", "harmonics": (1, 1), "pruning_rate": 0.5, "bits": 8}
        others = {} if block == NORMS_AND_BIASES else others
        try:
            space.network.block_forms(block, BlockConfig(**others | {knob: value}), minimum_templates=1)
        except (UsageError, TypeError) as error:
            raise UsageError(f"space.{block}.{knob} has the value {value!r}; {error}") from error
    return tuple(dict.fromkeys(map(basis_name, values))) if knob == "basis" else values


def _words(values: Iterable[Value]) -> str:
    return ", ".join("none" if value is None else str(value) for value in values)
