"""One threshold of saliency over a whole network, as pruning rates of its blocks.

Miles & Mikolajczyk prune the least salient filters wherever they are (section 3.1, figure 6). What a threshold leaves
of each layer depends on the weights, so it is turned into rates, which say what a block costs, before anything is
priced or hashed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from layers import UsageError
from spaces.network import Network

__all__ = ["has_global_rate", "global_rates", "resolve_global_rates"]

_GLOBAL = re.compile(r"global (0?\.\d+)")
"""How a value of the knob `pruning_rate` asks for a threshold: `global 0.5` prunes half of all filters."""


def global_rates(
    network: Network, saliency: Mapping[str, Tensor], rate: float, minimum_templates: int
) -> dict[str, float]:
    """The pruning rate of each block with convolutions when the `rate` least salient filters of all go.

    `saliency` (N,) is of each convolution. A layer keeps `minimum_templates`, or all filters where it has fewer; a
    block of several layers has one rate, that of its filters together. Raises `UsageError` for a rate outside (0, 1)
    and for a network without convolutions.
    """
    if not 0 < rate < 1:
        raise UsageError(f"global pruning rate (={rate}) must be between 0 and 1.")
    layers = [name for block in network.blocks for name in network.layers_in(block) if name in saliency]
    if not layers:
        raise UsageError("The network has no convolutions, whose filters could be pruned.")
    every = torch.cat([saliency[name] for name in layers])
    owner = torch.cat([torch.full((len(saliency[name]),), place) for place, name in enumerate(layers)])
    pruned = owner[every.argsort(stable=True)[: round(rate * len(every))]].bincount(minlength=len(layers))
    filters = {name: len(saliency[name]) for name in layers}
    kept = {
        name: max(min(minimum_templates, filters[name]), filters[name] - int(count))
        for name, count in zip(layers, pruned, strict=True)
    }
    rates = {}
    for block in network.blocks:
        inside = [name for name in network.layers_in(block) if name in filters]
        if inside:
            rates[block] = round(1 - sum(kept[name] for name in inside) / sum(filters[name] for name in inside), 6)
    return rates


def has_global_rate(limits: Mapping[str, Any]) -> bool:
    """Whether limits of a space, as `Space.restrict` takes them, name a threshold."""
    return any(_asked(knobs) for knobs in limits.values())


def resolve_global_rates(
    limits: Mapping[str, Any], network: Network, saliency: Mapping[str, Tensor], minimum_templates: int
) -> dict[str, Any]:
    """The limits with rates in the place of thresholds; what is said of all blocks is said of each."""
    found: dict[str, Any] = {}
    for name, knobs in limits.items():
        if not _asked(knobs):
            found[name] = {**knobs, **found.get(name, {})} if isinstance(knobs, Mapping) else knobs
            continue
        plain = {knob: values for knob, values in knobs.items() if knob != "pruning_rate"}
        found[name] = {**found.get(name, {}), **plain}
        rates = {value: _rates(value, network, saliency, minimum_templates) for value in _values(knobs)}
        blocks = [block for block in network.blocks if any(layer in saliency for layer in network.layers_in(block))]
        for block in blocks if name == "all" else [name]:
            own = limits.get(block, {})
            if name == "all" and isinstance(own, Mapping) and "pruning_rate" in own:
                continue
            if block not in blocks:
                raise UsageError(f"space.{block} has no filters to prune; {', '.join(blocks)} have.")
            asked = [value if known is None else known[block] or None for value, known in rates.items()]
            found[block] = {**found.get(block, {}), "pruning_rate": list(dict.fromkeys(asked))}
    return found


def _values(knobs: Any) -> list[Any]:
    values = knobs.get("pruning_rate") if isinstance(knobs, Mapping) else None
    return list(values) if isinstance(values, list | tuple) else [values]


def _asked(knobs: Any) -> bool:
    return any(isinstance(value, str) and value.startswith("global") for value in _values(knobs))


def _rates(
    value: Any, network: Network, saliency: Mapping[str, Tensor], minimum_templates: int
) -> dict[str, float] | None:
    """The rates of all blocks that a value of the knob stands for; `None` where it is a value as it is."""
    if not isinstance(value, str) or not value.startswith("global"):
        return None
    asked = _GLOBAL.fullmatch(value)
    if asked is None:
        raise UsageError(f"pruning_rate (={value!r}) must be a rate, or such as 'global 0.5', between 0 and 1.")
    return global_rates(network, saliency, float(asked[1]), minimum_templates)
