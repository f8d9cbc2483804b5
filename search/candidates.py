"""Points of a space as a sampler handles them, thousands at a time: choices by number, exact costs, and features.

A point is one number for each knob that has a choice, in the order of `Candidates.knobs`: the place of its value. Costs
add up over blocks and forms are those of single blocks, so each choice of a block is looked at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from math import log2, prod

import numpy as np
import numpy.typing as npt

from layers import Cost
from layers.blockfloat import AXES
from layers.templates.transforms import TRANSFORMS
from spaces import BlockConfig, NetworkConfig, Space
from spaces.network import VECTORS

__all__ = ["Candidates", "Floats", "Ints", "Points"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Points:
    """So many points, and what is known of them before any training."""

    numbers: Ints
    """(m, knobs): the points."""
    identity: Ints
    """(m, blocks): rows are equal where two points make one network."""
    costs: Mapping[str, Floats]
    """By name, as the ledger has them, (m,)."""
    features: Floats
    """(m, d): what accuracy may depend on, each about 0 to 1. Of each block the share of its harmonics and of its
    filters, and how large its rounding errors are; the logarithms of size and compute in all."""

    def take(self, rows: npt.NDArray[np.bool_]) -> Points:
        """Those where it is true."""
        costs = {name: values[rows] for name, values in self.costs.items()}
        return Points(
            numbers=self.numbers[rows], identity=self.identity[rows], costs=costs, features=self.features[rows]
        )


class Candidates:
    """The points of a space."""

    def __init__(self, space: Space) -> None:
        self.space, self._forms = space, dict[tuple[str, bytes], _Form]()
        self._numbers = dict[tuple[str, BlockConfig], int]()
        self.knobs = {name: values for name, values in space.knobs.items() if len(values) > 1}
        names = list(self.knobs)
        self.places = {
            block: [place for place, name in enumerate(names) if name.rpartition(".")[0] == block]
            for block in space.choices
        }
        """Of each block, where its knobs are in a point."""
        self.uncompressed = _named(space.network.cost(NetworkConfig()))
        """Costs of the network as it was."""

    @property
    def size(self) -> int:
        """Number of points, before spellings of one network collapse."""
        return prod(len(values) for values in self.knobs.values())

    @cached_property
    def everything(self) -> Points:
        """All points, each network once; for a small space."""
        choices = itertools.product(*(range(len(values)) for values in self.knobs.values()))
        found = self.look(np.array(list(choices), dtype=np.int64))
        _, first = np.unique(found.identity, axis=0, return_index=True)
        return found.take(np.isin(np.arange(len(found.numbers)), first))

    def config(self, point: Ints) -> NetworkConfig:
        """The canonical config that a point (knobs,) stands for."""
        named = zip(self.knobs.items(), point, strict=True)
        return self.space.decode({name: values[place] for (name, values), place in named})

    def point(self, config: NetworkConfig) -> Ints:
        """A point that stands for the config; `UsageError` where it lies outside the space."""
        values = self.space.encode(config)
        return np.array([choices.index(values[name]) for name, choices in self.knobs.items()], dtype=np.int64)

    def look(self, numbers: Ints) -> Points:
        """What is known of the points (m, knobs)."""
        rest = _named(self.space.network.rest)
        costs = {name: np.full(len(numbers), float(value)) for name, value in rest.items()}
        identity, features = list[Ints](), list[Floats]()
        for block, places in self.places.items():
            chosen, rows = np.unique(numbers[:, places], axis=0, return_inverse=True)
            forms, rows = [self._form(block, choice) for choice in chosen], rows.reshape(-1)
            identity.append(np.array([form.number for form in forms], dtype=np.int64)[rows])
            features.append(np.array([form.features for form in forms])[rows])
            for name, values in costs.items():
                values += np.array([form.cost[name] for form in forms], dtype=np.float64)[rows]
        whole = [np.log2(costs[name] / self.uncompressed[name])[:, None] / 8 for name in ("size_bytes", "flops")]
        return Points(
            numbers=numbers,
            identity=np.column_stack(identity),
            costs=costs,
            features=np.column_stack([*features, *whole]),
        )

    def _form(self, block: str, choice: Ints) -> _Form:
        key = (block, choice.tobytes())
        if key not in self._forms:
            names = [list(self.knobs)[place] for place in self.places[block]]
            values = {name: self.knobs[name][place] for name, place in zip(names, choice, strict=True)}
            config = self.space.block_config(block, values)
            cost = self.space.network.block_cost(block, config, self.space.minimum_templates)
            number = self._numbers.setdefault((block, config), len(self._numbers))
            self._forms[key] = _Form(number, _named(cost), _features(config, self._kernel(block)))
        return self._forms[key]

    def _kernel(self, block: str) -> tuple[int, int]:
        """Of the block's largest filters."""
        network = self.space.network
        kernels = [(1, 1)] if block == VECTORS else [network.shapes[n].kernel for n in network.layers_of(block)]
        return max(kernel[0] for kernel in kernels), max(kernel[1] for kernel in kernels)


@dataclass(frozen=True)
class _Form:
    """What a choice of a block comes to."""

    number: int
    """Equal for two spellings of one form."""
    cost: Mapping[str, int]
    features: tuple[float, ...]


def _named(cost: Cost) -> dict[str, int]:
    return {**asdict(cost), "flops": cost.flops}


def _features(config: BlockConfig, kernel: tuple[int, int]) -> tuple[float, ...]:
    harmonics = config.harmonics or kernel
    error = 0.0 if config.bits is None else 2.0 ** (2 - config.bits)
    shared = (config.exponent_block or 1, config.activation_block or 1)
    return (
        *(min(1.0, n / k) for n, k in zip(harmonics, kernel, strict=True)),
        float(config.basis is not None and config.basis.startswith("chebyshev")),
        float(config.allocation is not None),
        1.0 - (config.pruning_rate or 0.0),
        log2(config.groups or 1) / 4,
        *(float(config.transform == name) for name in TRANSFORMS[1:]),
        error,
        *(error * log2(values) / 8 for values in shared),
        *(error * (config.exponent_axis == axis) for axis in AXES[1:]),
    )
