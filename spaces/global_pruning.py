"""One global pruning rate over a whole network, as pruning rates of its blocks.

Miles & Mikolajczyk prune the least salient filters wherever they are (section 3.1, figure 6). How many filters of each
layer this leaves depends on the weights, so a global rate is resolved to rates of blocks, which say what a block costs,
before anything is priced or hashed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from layers import UsageError
from spaces.network import Network

__all__ = ["global_rates", "has_global_rate", "resolve_global_rates"]

_GLOBAL_RATE = re.compile(r"global (0?\.\d+)")
"""A global rate as a value of the knob `pruning_rate`: `global 0.5` prunes half of all filters."""


def global_rates(
    network: Network, saliency: Mapping[str, Tensor], rate: float, minimum_templates: int
) -> dict[str, float]:
    """Return the pruning rate of each block with convolutions when the least salient share `rate` of all filters goes.

    `saliency` holds (N,) values for each convolution. A layer keeps `minimum_templates`, or all filters if it has
    fewer. A block of several layers has one rate, that of its filters together. Raises `UsageError` for a rate outside
    (0, 1) and for a network without convolutions.
    """
    if not 0 < rate < 1:
        raise UsageError(f"global pruning rate (={rate}) must be between 0 and 1")
    layers = [name for block in network.blocks for name in network.layers_in(block) if name in saliency]
    if not layers:
        raise UsageError("the network has no convolutions whose filters could be pruned")
    values = torch.cat([saliency[name] for name in layers])
    owner = torch.cat([torch.full((len(saliency[name]),), index) for index, name in enumerate(layers)])
    pruned = owner[values.argsort(stable=True)[: round(rate * len(values))]].bincount(minlength=len(layers))
    filters = {name: len(saliency[name]) for name in layers}
    templates = {
        name: max(min(minimum_templates, filters[name]), filters[name] - int(count))
        for name, count in zip(layers, pruned, strict=True)
    }
    rates = {}
    for block in network.blocks:
        convs = [name for name in network.layers_in(block) if name in filters]
        if convs:
            remaining = sum(templates[name] for name in convs) / sum(filters[name] for name in convs)
            rates[block] = round(1 - remaining, 6)
    return rates


def has_global_rate(limits: Mapping[str, Any]) -> bool:
    """Return whether limits of a space, as `Space.restrict` takes them, contain a global rate."""
    return any(_contains_global_rate(knobs) for knobs in limits.values())


def resolve_global_rates(
    limits: Mapping[str, Any], network: Network, saliency: Mapping[str, Tensor], minimum_templates: int
) -> dict[str, Any]:
    """Return the limits with the rates of blocks in place of global rates.

    A global rate under `all`, or under a part of several blocks, becomes one list of rates for each block in it that
    can be pruned and has no `pruning_rate` of its own, or of a smaller part. Raises `UsageError` for a block without
    filters to prune, or a rate that cannot be read.
    """
    resolved: dict[str, Any] = {}
    for name, knobs in limits.items():
        if not _contains_global_rate(knobs):
            resolved[name] = {**knobs, **resolved.get(name, {})} if isinstance(knobs, Mapping) else knobs
            continue
        others = {knob: values for knob, values in knobs.items() if knob != "pruning_rate"}
        resolved[name] = {**resolved.get(name, {}), **others}
        rates = {value: _rates(value, network, saliency, minimum_templates) for value in _pruning_rates(knobs)}
        prunable = [block for block in network.blocks if any(name in saliency for name in network.layers_in(block))]
        named = prunable if name == "all" else [block for block in network.blocks_in(name) if block in prunable]
        if not named:
            raise UsageError(f"space.{name} has no filters to prune; {', '.join(prunable)} have")
        for block in named:
            if _has_nearer_rate(block, name, limits, network):
                continue
            values = [value if by_block is None else by_block[block] or None for value, by_block in rates.items()]
            resolved[block] = {**resolved.get(block, {}), "pruning_rate": list(dict.fromkeys(values))}
    return resolved


def _has_nearer_rate(block: str, name: str, limits: Mapping[str, Any], network: Network) -> bool:
    """Return whether the limits of a smaller part than the one of this name say the rates of a block."""

    def rank(part: str) -> tuple[int, int]:
        return (len(network.blocks), 1) if part == "all" else (len(network.blocks_in(part)), -part.count("."))

    return any(
        block in network.blocks_in(part) and "pruning_rate" in knobs and rank(part) < rank(name)
        for part, knobs in limits.items()
        if isinstance(knobs, Mapping)
    )


def _pruning_rates(knobs: Any) -> list[Any]:
    values = knobs.get("pruning_rate") if isinstance(knobs, Mapping) else None
    return list(values) if isinstance(values, list | tuple) else [values]


def _contains_global_rate(knobs: Any) -> bool:
    return any(isinstance(value, str) and value.startswith("global") for value in _pruning_rates(knobs))


def _rates(
    value: Any, network: Network, saliency: Mapping[str, Tensor], minimum_templates: int
) -> dict[str, float] | None:
    """Return the rates of all blocks for a global rate; `None` for any other value of the knob."""
    if not isinstance(value, str) or not value.startswith("global"):
        return None
    match = _GLOBAL_RATE.fullmatch(value)
    if match is None:
        raise UsageError(f"pruning_rate (={value!r}) must be a rate between 0 and 1, or one such as 'global 0.5'")
    return global_rates(network, saliency, float(match[1]), minimum_templates)
