"""The search space: which values each knob of each block may take, and how a config is written in them.

Knobs have flat names, `BLOCK.KNOB`, and a fixed set of plain values that does not depend on other knobs, so that any
sampler can draw them. Values without effect collapse when a config is made canonical. `decode` and `encode` are
inverse on canonical configs that lie in the space.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from layers import Cost, UsageError
from layers.errors import first_line
from layers.form import ALLOCATIONS, MOST_TAPS
from layers.series.basis import FAMILIES, basis_name
from spaces.config import BlockConfig, NetworkConfig
from spaces.network import NORMS_AND_BIASES, Network
from spaces.spelling import in_blocks

__all__ = ["KNOBS", "Space", "Value"]

Value = str | int | float | None

_HARMONICS = ("harmonics_y", "harmonics_x")
_EXPONENTS = ("exponent_block", "exponent_axis", "scale")
_ACTIVATIONS = ("activation_bits", "activation_block")
_TEMPLATES = ("pruning_rate", "groups", "transform")
_STORED = ("basis", *_HARMONICS, "allocation", *_TEMPLATES, "bits", *_EXPONENTS)
KNOBS = (*_STORED, *_ACTIVATIONS, "arithmetic")
PRUNING_RATES = (None, 0.25, 0.5, 0.75, 0.875)
GROUPS = (1, 2, 4)
TRANSFORMS = ("scalar",)
BITS = (1, 2, 3, 4, 6, 8, None)
EXPONENT_BLOCKS = (16,)
EXPONENT_AXES = ("flat",)
SCALES = (None,)
ACTIVATION_BITS = (None,)
ACTIVATION_BLOCKS = (1,)
ARITHMETICS = ("float", "int8")
"""The default space has the first alone unless it is asked for both."""
NORM_BITS = (8, None)


@dataclass(frozen=True, kw_only=True)
class Space:
    """Choices of every knob of every block of a network; a knob with more than one is a dimension of the search."""

    network: Network
    choices: Mapping[str, Mapping[str, tuple[Value, ...]]]
    """Block -> knob -> values; their order means something except in `basis`, `transform` and `exponent_axis`."""
    minimum_templates: int = NetworkConfig.minimum_templates

    @classmethod
    def default(
        cls, network: Network, minimum_templates: int = NetworkConfig.minimum_templates, *, int8: bool = False
    ) -> Space:
        """Return the space of what each block can take, the uncompressed network included.

        With `int8` blocks may compute in it, which pays where latency counts in a runtime that has integer kernels.

        Of some knobs it has a selection of values; `restrict` takes others. Raises `UsageError` for a network without a
        layer that can be compressed.
        """
        if not network.blocks:
            raise UsageError("the network has no layer that can be compressed")
        choices = {block: _default_choices(network, block, minimum_templates) for block in network.blocks}
        if int8:
            choices = {block: {**knobs, "arithmetic": ARITHMETICS} for block, knobs in choices.items()}
        if network.layers_in(NORMS_AND_BIASES):
            choices[NORMS_AND_BIASES] = {"bits": NORM_BITS}
        return cls(network=network, choices=choices, minimum_templates=minimum_templates)

    def restrict(self, limits: Mapping[str, Any]) -> Space:
        """Return the space with other choices: `limits` is `{block or "all": {knob: [values]}}`.

        The name of a larger part of the network stands for the blocks in it. The knob `harmonics` stands for both axes,
        and blocks with fewer taps than others that a name stands for take as many harmonics as taps. Knobs of which the
        default space has a selection take any value that the layers can. Limits of a part win over those of a larger
        one. Raises `UsageError` naming a block, knob or value that the network cannot take.
        """
        choices = {block: dict(knobs) for block, knobs in self.choices.items()}
        named = {part: self._named(part) for part in limits}
        order = sorted(limits, key=lambda part: (part != "all", -len(named[part]), part.count(".")))
        for part, knobs in ((part, limits[part]) for part in order):
            for knob, values in _flat_limits(knobs, part):
                having = [name for name in named[part] if knob in choices[name]]
                if not having and part != "all":
                    allowed = _joined(dict.fromkeys(knob for name in named[part] for knob in choices[name]))
                    raise UsageError(f"knob (={knob!r}) of space.{part} must be one of {allowed}")
                for name in having:
                    choices[name][knob] = _checked_values(self, name, knob, self._own(name, knob, values, having))
        for block, together in choices.items():
            _check_together(block, together)
        return Space(network=self.network, choices=choices, minimum_templates=self.minimum_templates)

    def _named(self, part: str) -> tuple[str, ...]:
        """Return the blocks that a name of a space file stands for."""
        if part == "all" or part in self.choices:
            return tuple(self.choices) if part == "all" else (part,)
        blocks = self.network.blocks_in(part)
        if not blocks:
            raise UsageError(f"block (={part!r}) of the space must be one of all, {', '.join(self.choices)}")
        return blocks

    def _own(self, block: str, knob: str, values: tuple[Value, ...], blocks: Iterable[str]) -> tuple[Value, ...]:
        """Return the values of a knob for one of these blocks: of harmonics no more than it has, if another has."""
        if knob not in _HARMONICS:
            return values
        most = {name: max(n for n in self.choices[name][knob] if isinstance(n, int)) for name in blocks}
        reach = max(most.values())
        return tuple(min(n, most[block]) if type(n) is int and 1 <= n <= reach else n for n in values)

    @property
    def knobs(self) -> dict[str, tuple[Value, ...]]:
        """Flat names of all knobs with their values."""
        return {f"{block}.{knob}": values for block, knobs in self.choices.items() for knob, values in knobs.items()}

    @property
    def size(self) -> int:
        """Number of points, before spellings of one network collapse."""
        return prod(len(values) for values in self.knobs.values())

    def decode(self, values: Mapping[str, Value]) -> NetworkConfig:
        """Return the canonical config of one value a knob; knobs that are not named take their first value."""
        blocks = {block: self.block_config(block, values) for block in self.choices}
        return self.network.canonical(NetworkConfig(blocks=blocks, minimum_templates=self.minimum_templates))

    def block_config(self, block: str, values: Mapping[str, Value]) -> BlockConfig:
        """Return the config of one block as these values spell it, knobs without effect included."""
        choices = self.choices[block].items()
        return _block_config({knob: values.get(f"{block}.{knob}", allowed[0]) for knob, allowed in choices})

    def encode(self, config: NetworkConfig) -> dict[str, Value]:
        """Return one value a knob that decodes to the config; raise `UsageError` if it lies outside the space.

        The config may name any parts of the network (`spaces.spelling`).
        """
        spelled = in_blocks(self.network, config)
        blocks = (spelled if spelled is config else self.network.canonical(spelled)).blocks
        values: dict[str, Value] = {}
        for block in self.choices:
            values |= self.encode_block(block, blocks.get(block, BlockConfig()))
        if self.network.forms(self.decode(values)) != self.network.forms(config):
            raise UsageError("the config lies outside the space: a knob that the space holds fixed differs")
        return values

    def encode_block(self, block: str, block_config: BlockConfig) -> dict[str, Value]:
        """Return the values of one block's knobs, as `encode` does, of a canonical config that the space holds."""
        return {f"{block}.{knob}": self._encoded(block, knob, block_config) for knob in self.choices[block]}

    def spelled(self, config: NetworkConfig) -> NetworkConfig:
        """Return the canonical config of the same network in the space's blocks, as `decode` does.

        Raises `UsageError` if it lies outside the space.
        """
        return self.decode(self.encode(config))

    def block_configs(self, block: str) -> Iterator[BlockConfig]:
        """Yield every combination of one block's knobs."""
        knobs = self.choices[block]
        for values in itertools.product(*knobs.values()):
            yield _block_config(dict(zip(knobs, values, strict=True)))

    def block_costs(self, block: str) -> dict[BlockConfig, Cost]:
        """Return the cost of the block under each of its configs."""
        return {c: self.network.block_cost(block, c, self.minimum_templates) for c in self.block_configs(block)}

    def _encoded(self, block: str, knob: str, block_config: BlockConfig) -> Value:
        """Return the choice of a knob that stands for its value in a config; raise `UsageError` if there is none."""
        value, allowed = self.value(block, knob, block_config), self.choices[block][knob]
        if value in allowed:
            return value
        optional = knob == "basis" or (value is None and knob in _WITH_DEFAULTS)
        if optional and len(allowed) == 1:
            return allowed[0]
        fitting = self._equivalent_values(block, knob, block_config)
        if not fitting and not optional:
            raise UsageError(f"{block}.{knob} (={value}) must be one of {_joined(allowed)}")
        return (*fitting, *allowed)[0]

    def _equivalent_values(self, block: str, knob: str, block_config: BlockConfig) -> tuple[Value, ...]:
        """Return the choices of a knob that make the same block, if a config may name another value."""
        if knob not in ("basis", "allocation", "pruning_rate", *_WITH_DEFAULTS):
            return ()
        if knob in _BESIDE and getattr(block_config, _BESIDE[knob]) is None:
            return self.choices[block][knob]

        def is_equivalent(value: Any) -> bool:
            other = replace(block_config, **{knob: value})
            return self.network.equivalent(block, block_config, other, self.minimum_templates)

        return tuple(filter(is_equivalent, self.choices[block][knob]))

    def value(self, block: str, knob: str, config: BlockConfig) -> Value:
        """Return what a block's config says of a knob: as many harmonics as taps where it says nothing of them."""
        if knob in _HARMONICS:
            axis = 0 if knob == "harmonics_y" else 1
            largest = max(self.network.shapes[layer].kernel[axis] for layer in self.network.blocks[block])
            return largest if config.harmonics is None else min(config.harmonics[axis], largest)
        value: Value = getattr(config, knob)
        return value


def _default_choices(network: Network, block: str, minimum_templates: int) -> dict[str, tuple[Value, ...]]:
    shapes = [network.shapes[name] for name in network.blocks[block]]
    convs = [shape for shape in shapes if shape.kind == "conv2d"]
    knobs: dict[str, tuple[Value, ...]] = {}
    tall, wide = (max((shape.kernel[axis] for shape in convs), default=1) for axis in (0, 1))
    if max(tall, wide) > 1:
        knobs["basis"] = FAMILIES
        knobs["harmonics_y"] = tuple(range(1, tall + 1))
        knobs["harmonics_x"] = tuple(range(1, wide + 1))
        if all(prod(shape.kernel) <= MOST_TAPS for shape in convs):
            knobs["allocation"] = (None, *ALLOCATIONS)
    rates = _distinct_rates(network, block, minimum_templates) if convs else (None,)
    if len(rates) > 1:
        knobs["pruning_rate"] = rates
        knobs["groups"] = tuple(g for g in GROUPS if all(shape.filter_channels % g == 0 for shape in convs))
        knobs["transform"] = TRANSFORMS
    knobs["bits"] = BITS
    knobs["exponent_block"] = EXPONENT_BLOCKS
    knobs["exponent_axis"] = EXPONENT_AXES
    knobs["scale"] = SCALES
    knobs["activation_bits"] = ACTIVATION_BITS
    knobs["activation_block"] = ACTIVATION_BLOCKS
    knobs["arithmetic"] = ARITHMETICS[:1]
    return knobs


def _distinct_rates(network: Network, block: str, minimum_templates: int) -> tuple[Value, ...]:
    """Return the pruning rates that leave different numbers of templates."""
    seen = []
    rates = []
    for rate in PRUNING_RATES:
        forms = network.block_forms(block, BlockConfig(pruning_rate=rate), minimum_templates)
        if forms not in seen:
            seen.append(forms)
            rates.append(rate)
    return tuple(rates)


def _block_config(values: Mapping[str, Any]) -> BlockConfig:
    harmonics = (values["harmonics_y"], values["harmonics_x"]) if "harmonics_y" in values else None
    rate = values.get("pruning_rate")
    bits, activation_bits = values.get("bits"), values.get("activation_bits")
    return BlockConfig(
        basis=values["basis"] if harmonics else None,
        harmonics=harmonics,
        allocation=values.get("allocation") if harmonics else None,
        pruning_rate=rate,
        groups=values.get("groups") if rate is not None else None,
        transform=values.get("transform") if rate is not None else None,
        bits=bits,
        **{knob: values.get(knob) if bits is not None else None for knob in _EXPONENTS},
        activation_bits=activation_bits,
        activation_block=values.get("activation_block") if activation_bits is not None else None,
        arithmetic=values.get("arithmetic"),
    )


def _flat_limits(knobs: Any, block: str) -> Iterator[tuple[str, tuple[Value, ...]]]:
    """Yield the values of each knob, those of `harmonics` for both axes."""
    if not isinstance(knobs, Mapping):
        raise UsageError(f"space.{block} (={knobs!r}) must be a mapping of knobs to lists of values")
    for knob, values in knobs.items():
        values = tuple(values) if isinstance(values, list | tuple) else (values,)
        if not all(value is None or isinstance(value, str | int | float) for value in values):
            raise UsageError(f"space.{block}.{knob} (={list(values)}) must be a list of plain values")
        for name in _HARMONICS if knob == "harmonics" else (knob,):
            if name not in KNOBS:
                close = difflib.get_close_matches(name, KNOBS, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise UsageError(
                    f"knob (={knob!r}) of space.{block} must be one of harmonics, {', '.join(KNOBS)}{hint}"
                )
            yield name, values


_WITH_DEFAULTS = ("groups", "transform", *_EXPONENTS, "activation_block", "arithmetic")
"""Knobs for which a canonical config leaves out a default value, or one that has no effect."""
_BESIDE = {
    **dict.fromkeys(("basis", "allocation"), "harmonics"),
    **dict.fromkeys(("groups", "transform"), "pruning_rate"),
    **dict.fromkeys(_EXPONENTS, "bits"),
    "activation_block": "activation_bits",
}
"""Knobs without effect where another one is left out, and that one."""
_OPEN_KNOBS = ("basis", *_TEMPLATES, "bits", *_EXPONENTS, *_ACTIVATIONS, "arithmetic")
"""Knobs whose default choices are a selection: `restrict` takes any other value that the layers can."""


def _checked_values(space: Space, block: str, knob: str, values: tuple[Value, ...]) -> tuple[Value, ...]:
    """Return the values, each once; raise `UsageError` for one that the block's layers cannot take."""
    default = space.choices[block][knob]
    values = tuple(dict.fromkeys(None if value == "none" else value for value in values))
    if not values or (knob not in _OPEN_KNOBS and any(value not in default for value in values)):
        raise UsageError(f"space.{block}.{knob} (={list(values)}) must be a list of values among {_joined(default)}")
    for value in values if knob in _OPEN_KNOBS else ():
        others: dict[str, Any] = {"basis": "cosine", "harmonics": (1, 1), "pruning_rate": 0.5, "bits": 8}
        others |= {"activation_bits": 8} if knob == "activation_block" else {"bits": 4} if knob == "scale" else {}
        others = {} if block == NORMS_AND_BIASES else others
        try:
            space.network.block_forms(block, BlockConfig(**others | {knob: value}), minimum_templates=1)
        except (UsageError, TypeError) as error:
            raise UsageError(f"cannot take space.{block}.{knob} = {value!r}: {first_line(error)}") from error
    return tuple(dict.fromkeys(map(basis_name, values))) if knob == "basis" else values


def _check_together(block: str, choices: Mapping[str, tuple[Value, ...]]) -> None:
    """Raise `UsageError` for choices of two knobs that no config of the block can have together."""
    blocks = choices.get("activation_block", ACTIVATION_BLOCKS)
    if blocks != ACTIVATION_BLOCKS and choices["activation_bits"] == ACTIVATION_BITS:
        raise UsageError(
            f"activation_block (={_joined(blocks)}) of {block!r} must be given together with activation_bits, as bits "
            "are those of stored weights alone"
        )
    bits = [value for value in choices["bits"] if isinstance(value, int) and value > 7]
    if bits and any(choices.get("scale", SCALES)):
        raise UsageError(f"bits (={_joined(bits)}) of {block!r} must be at most 7 beside a scale")


def _joined(values: Iterable[Value]) -> str:
    return ", ".join("none" if value is None else str(value) for value in values)
