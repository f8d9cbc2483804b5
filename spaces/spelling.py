"""One network, spelled by stages or by single layers: any config in the blocks that a network is searched by.

A config may name any part of a network. A name larger than a block stands for the blocks in it; names smaller than a
block are one config of it if they make its layers what one config would.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

from layers.errors import UsageError
from spaces.config import BlockConfig, NetworkConfig
from spaces.network import NORMS_AND_BIASES, Network

__all__ = ["in_blocks"]

_MOST = 64
"""Mixtures of layers' knobs that are tried for a block at most."""
_ALONE = tuple(knob.name for knob in fields(BlockConfig) if knob.name != "harmonics")


def in_blocks(network: Network, config: NetworkConfig) -> NetworkConfig:
    """Return a config of the same forms that names blocks of the network alone.

    Raises `UsageError` for a config that the network cannot take, or that treats the layers of a block differently.
    """
    if config.blocks.keys() <= {*network.blocks, NORMS_AND_BIASES}:
        return config
    network.forms(config)
    parts = {name: knobs for name, knobs in config.blocks.items() if name != NORMS_AND_BIASES}
    by_layer = {layer: knobs for name, knobs in parts.items() for layer in network.layers_in(name)}
    blocks = {
        block: config.blocks.get(block) or _common(network, block, by_layer, config.minimum_templates)
        for block, layers in network.blocks.items()
        if not by_layer.keys().isdisjoint(layers)
    }
    rest = {name: knobs for name, knobs in config.blocks.items() if name == NORMS_AND_BIASES}
    return replace(config, blocks={**blocks, **rest})


def _common(network: Network, block: str, by_layer: dict[str, BlockConfig], minimum_templates: int) -> BlockConfig:
    """Return the config of a block whose layers have these configs; raise `UsageError` if there is none."""
    layers = network.blocks[block]
    configs = [by_layer.get(layer, BlockConfig()) for layer in layers]
    wanted: dict[str, object] = {}
    for layer, knobs in zip(layers, configs, strict=True):
        wanted |= network.block_forms(layer, knobs, minimum_templates)
    kernels = [network.shapes[layer].kernel for layer in layers]
    for mixture in itertools.islice(_mixtures(configs, _common_harmonics(configs, kernels)), _MOST):
        if network.block_forms(block, mixture, minimum_templates) == wanted:
            return mixture
    raise UsageError(f"the config lies outside the space: it does not treat the layers of its block {block!r} alike")


def _mixtures(configs: Sequence[BlockConfig], harmonics: tuple[int, int] | None) -> Iterator[BlockConfig]:
    """Yield the configs that have of each knob one of the values it has in these, where it has any."""
    values = [_distinct(getattr(config, knob) for config in configs) for knob in _ALONE]
    for choice in itertools.product(*values):
        try:
            yield BlockConfig(**dict(zip(_ALONE, choice, strict=True)), harmonics=harmonics)
        except UsageError:  # knobs of different layers that one block cannot have together
            continue


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(value for value in values if value is not None)) or [None]


def _common_harmonics(configs: Sequence[BlockConfig], kernels: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Return the harmonics that leave each layer, of these taps, as many as its config does, if there are such."""
    if all(config.harmonics is None for config in configs):
        return None
    pairs = [config.harmonics or kernel for config, kernel in zip(configs, kernels, strict=True)]
    y, x = (
        min((n for n, k in zip(*axis, strict=True) if n < k), default=max(axis[1]))
        for axis in zip(zip(*pairs, strict=True), zip(*kernels, strict=True), strict=True)
    )
    return y, x
