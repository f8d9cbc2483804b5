"""Points of a space as a sampler handles them, thousands at a time: indices of choices, exact costs, and features.

A point is one index for each knob that has a choice, in the order of `Candidates.knobs`: that of the knob's value.
Costs add up over blocks and forms are those of single blocks, so each choice of a block is described only once.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import log2, prod

import numpy as np
import numpy.typing as npt

from layers import Cost, LayerForm, LayerShape
from layers.blockfloat import AXES
from layers.cost import network_cost
from layers.templates.transforms import TRANSFORMS
from search.optimize.forecast import Forecast
from spaces import BlockConfig, NetworkConfig, Space
from spaces.blocks import find_blocks
from spaces.network import NORMS_AND_BIASES
from spaces.space import Value

__all__ = ["Candidates", "Floats", "Ints", "Points"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_DENSE = LayerForm()


@dataclass(frozen=True, kw_only=True)
class Points:
    """Points of a space, and what is known of each before any training."""

    indices: Ints
    """(m, knobs): the points."""
    identity: Ints
    """(m, blocks): rows are equal if two points make one network."""
    costs: Mapping[str, Floats]
    """By the names of the ledger's columns, (m,)."""
    features: Floats
    """(m, d): what the score may depend on, each about 0 to 1. First what the effects of single blocks add up to
    (`search.optimize.forecast`), where they are known. Then of each stage, on average over its layers, the shares of
    harmonics and of filters that are left, how large the rounding errors of weights and of inputs are, and whether it
    computes in int8; the logarithms of size and compute in all. A stage has one set of features even where its layers
    are blocks of their own: tens of trials cannot tell hundreds of weights, and how much a layer matters its effects
    say."""

    def joined(self, other: Points) -> Points:
        """Return these points, then the others."""
        return Points(
            indices=np.concatenate([self.indices, other.indices]),
            identity=np.concatenate([self.identity, other.identity]),
            costs={name: np.concatenate([values, other.costs[name]]) for name, values in self.costs.items()},
            features=np.concatenate([self.features, other.features]),
        )

    def take(self, rows: npt.NDArray[np.bool_]) -> Points:
        """Return the points at which `rows` (m,) is true."""
        return Points(
            indices=self.indices[rows],
            identity=self.identity[rows],
            costs={name: values[rows] for name, values in self.costs.items()},
            features=self.features[rows],
        )


class Candidates:
    """The points of a space."""

    def __init__(self, space: Space, forecast: Forecast | None = None) -> None:
        """With a `forecast`, points know what the effects of single blocks add up to."""
        self.space = space
        self.forecast = forecast
        self.knobs = {name: values for name, values in space.knobs.items() if len(values) > 1}
        names = list(self.knobs)
        self.columns = {
            block: [column for column, name in enumerate(names) if name.rpartition(".")[0] == block]
            for block in space.choices
        }
        """The columns of a point that are a block's, by block."""
        self._blocks = {
            block: _Block(space, block, {names[column]: self.knobs[names[column]] for column in columns}, forecast)
            for block, columns in self.columns.items()
        }
        self._stages = _stages(space)
        self.uncompressed = _by_name(space.network.cost(NetworkConfig()))
        """Costs of the uncompressed network."""

    @property
    def size(self) -> int:
        """Number of points, before spellings of one network collapse."""
        return prod(len(values) for values in self.knobs.values())

    @cached_property
    def width(self) -> int:
        """Number of features of a point."""
        return self.describe(np.zeros((1, len(self.knobs)), dtype=np.int64)).features.shape[1]

    @cached_property
    def all_points(self) -> Points:
        """All points, each network once; for a small space."""
        choices = itertools.product(*(range(len(values)) for values in self.knobs.values()))
        points = self.describe(np.array(list(choices), dtype=np.int64))
        _, first = np.unique(points.identity, axis=0, return_index=True)
        return points.take(np.isin(np.arange(len(points.indices)), first))

    def config(self, point: Ints) -> NetworkConfig:
        """Return the canonical config that a point (knobs,) stands for."""
        blocks = {name: block.canonical(point[self.columns[name]]) for name, block in self._blocks.items()}
        compressed = {name: config for name, config in blocks.items() if config != BlockConfig()}
        return NetworkConfig(blocks=compressed, minimum_templates=self.space.minimum_templates)

    def point(self, config: NetworkConfig) -> Ints:
        """Return a point (knobs,) that stands for the config; raise `UsageError` if it lies outside the space."""
        values = self.space.encode(config)
        return np.array([choices.index(values[name]) for name, choices in self.knobs.items()], dtype=np.int64)

    def canonical(self, point: Ints) -> Ints:
        """Return the point (knobs,) as its canonical config is encoded."""
        canonical = point.copy()
        for name, block in self._blocks.items():
            columns = self.columns[name]
            canonical[columns] = block.encoded(point[columns])
        return canonical

    def describe(self, indices: Ints) -> Points:
        """Return the points (m, knobs) with their identity, costs and features."""
        blocks = {name: block.describe(indices[:, self.columns[name]]) for name, block in self._blocks.items()}
        rest = _by_name(self.space.network.rest)
        kinds = 0 if self.forecast is None else len(self.forecast.slopes)
        sums = np.sum([block[:, 1 : 1 + len(rest) + kinds] for block in blocks.values()], axis=0)
        costs = dict(zip(rest, sums.T[: len(rest)] + np.array(list(rest.values()))[:, None], strict=True))
        shares = [
            np.mean([blocks[name][:, 1 + len(rest) + kinds :] for name in names], axis=0)
            for names in self._stages.values()
        ]
        totals = [np.log2(costs[name] / self.uncompressed[name])[:, None] / 8 for name in ("size_bytes", "flops")]
        return Points(
            indices=indices,
            identity=np.column_stack([block[:, 0] for block in blocks.values()]).astype(np.int64),
            costs=costs,
            features=np.column_stack([sums[:, len(rest) :], *shares, *totals]),
        )


class _Block:
    """The forms that a block can take, each described once: a row with its identity, its costs and its features.

    A choice of the block's knobs has one code, its index in the product of the knobs' values.
    """

    def __init__(
        self, space: Space, block: str, knobs: Mapping[str, tuple[Value, ...]], forecast: Forecast | None
    ) -> None:
        self._space = space
        self._forecast = forecast
        self._block = block
        self._knobs = knobs
        lengths = [len(values) for values in knobs.values()]
        self._strides = np.array([prod(lengths[column + 1 :]) for column in range(len(lengths))], dtype=np.int64)
        network = space.network
        self._shapes = {name: network.shapes.get(name) or network.norms[name] for name in network.layers_in(block)}
        self._whole = network_cost(self._shapes, {}, Cost()) if block == NORMS_AND_BIASES else Cost()
        """What the costs of other blocks and of the rest of the network hold of this one."""
        self._rows = dict[int, Floats]()
        self._described = dict[BlockConfig, Floats]()
        self._identities = dict[frozenset[tuple[str, LayerForm]], int]()
        self._canonical = dict[int, BlockConfig]()
        self._encoded = dict[int, Ints]()

    def describe(self, choices: Ints) -> Floats:
        """Return the rows of the choices (m, knobs): (m, columns)."""
        if len(choices) == 1:
            return self._row(int(choices[0] @ self._strides))[None]
        codes, rows = np.unique(choices @ self._strides, return_inverse=True)
        return np.array([self._row(code) for code in codes.tolist()]).reshape(len(codes), len(self._row(0)))[rows]

    def canonical(self, choice: Ints) -> BlockConfig:
        """Return the config that the choice (knobs,) spells, without knobs that have no effect."""
        code = int(choice @ self._strides)
        if code not in self._canonical:
            spelled = NetworkConfig(
                blocks={self._block: self._spelled(code)}, minimum_templates=self._space.minimum_templates
            )
            blocks = self._space.network.canonical(spelled).blocks
            self._canonical[code] = blocks.get(self._block, BlockConfig())
        return self._canonical[code]

    def encoded(self, choice: Ints) -> Ints:
        """Return the choice (knobs,) that stands for the same config as its canonical spelling does."""
        code = int(choice @ self._strides)
        if code not in self._encoded:
            values = self._space.encode_block(self._block, self.canonical(choice))
            indices = [allowed.index(values[name]) for name, allowed in self._knobs.items()]
            self._encoded[code] = np.array(indices, dtype=np.int64)
        return self._encoded[code]

    def _spelled(self, code: int) -> BlockConfig:
        indices = (code // int(stride) % len(v) for stride, v in zip(self._strides, self._knobs.values(), strict=True))
        values = {name: v[index] for (name, v), index in zip(self._knobs.items(), indices, strict=True)}
        return self._space.block_config(self._block, values)

    def _row(self, code: int) -> Floats:
        if code not in self._rows:
            config = self._spelled(code)
            if config not in self._described:
                self._described[config] = self._describe(config)
            self._rows[code] = self._described[config]
        return self._rows[code]

    def _describe(self, config: BlockConfig) -> Floats:
        forms = self._space.network.block_forms(self._block, config, self._space.minimum_templates)
        identity = self._identities.setdefault(frozenset(forms.items()), len(self._identities))
        costs = _by_name(network_cost(self._shapes, forms, Cost()) - self._whole)
        effects = () if self._forecast is None else self._forecast(self._block, config)
        layers = [_features(shape, forms.get(name, _DENSE)) for name, shape in self._shapes.items()]
        features = layers[0] if len(layers) == 1 else np.mean(layers, axis=0)
        return np.array([identity, *costs.values(), *effects, *features])


def _stages(space: Space) -> dict[str, list[str]]:
    """Return the blocks of each stage; of layers that are blocks of their own, the stage that they belong to."""
    stages = find_blocks(space.network.shapes, "stage")
    stage_of = {layer: stage for stage, layers in stages.items() for layer in layers}
    found: dict[str, list[str]] = {}
    for block in space.choices:
        own = block == NORMS_AND_BIASES
        found.setdefault(block if own else stage_of[space.network.layers_in(block)[0]], []).append(block)
    return found


def _by_name(cost: Cost) -> dict[str, int]:
    return {"parameters": cost.parameters, "size_bytes": cost.size_bytes, "macs": cost.macs, "flops": cost.flops}


@lru_cache(maxsize=1 << 16)
def _features(shape: LayerShape, form: LayerForm) -> tuple[float, ...]:
    error, input_error = _rounding_error(form.bits or form.vector_bits), _rounding_error(form.activation_bits)
    return (
        *(n / k for n, k in zip(form.harmonics or shape.kernel, shape.kernel, strict=True)),
        float(form.basis is not None and form.basis.startswith("chebyshev")),
        float(form.allocation is not None),
        (form.templates or shape.out_channels) / shape.out_channels,
        log2(form.groups) / 4,
        *(float(form.transform == name) for name in TRANSFORMS[1:]),
        error,
        error * log2(form.exponent_block) / 8,
        *(error * (form.exponent_axis == axis) for axis in AXES[1:]),
        error * (form.scale is not None),
        input_error,
        input_error * log2(form.activation_block) / 8,
        float(form.arithmetic == "int8"),
    )


def _rounding_error(bits: int | None) -> float:
    return 0.0 if bits is None else 2.0 ** (2 - bits)
