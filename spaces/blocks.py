"""The blocks of any network: which layers are compressed alike."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal

from layers.errors import UsageError

__all__ = ["NORMS_AND_BIASES", "Granularity", "find_blocks", "stages_of"]

Granularity = Literal["stage", "layer"]
NORMS_AND_BIASES = "norms_and_biases"
"""The block of all norms and biases, which takes bits alone."""


def find_blocks(layers: Collection[str], granularity: Granularity = "stage") -> dict[str, tuple[str, ...]]:
    """Return the layers of each block, from the names of convolution and linear layers in network order.

    A `stage` is a child of the network; if one child holds more than half of all layers (torchvision's `features`), its
    own children are the stages instead. With `layer`, each layer is a block.
    """
    if granularity == "layer":
        return {name: (name,) for name in layers}
    if granularity != "stage":
        raise UsageError(f"granularity (={granularity!r}) must be one of stage, layer")
    blocks: dict[str, list[str]] = {}
    for name in layers:
        blocks.setdefault(_stage_of(name, layers), []).append(name)
    return {block: tuple(names) for block, names in blocks.items()}


def stages_of(blocks: Iterable[str], granularity: str) -> dict[str, str]:
    """Return the stage of each block of a network: the block itself unless blocks are single layers."""
    names = dict.fromkeys(blocks)
    if granularity != "layer":
        return {name: name for name in names}
    stages = find_blocks([name for name in names if name != NORMS_AND_BIASES])
    found = {layer: stage for stage, layers in stages.items() for layer in layers}
    return {name: found.get(name, name) for name in names}


def _stage_of(layer: str, layers: Collection[str]) -> str:
    """Return the shortest prefix of the layer's path that holds at most half of all layers, or the layer itself."""
    parts = layer.split(".")
    for depth in range(1, len(parts) + 1):
        prefix = ".".join(parts[:depth])
        if 2 * sum(name == prefix or name.startswith(f"{prefix}.") for name in layers) <= len(layers):
            return prefix
    return layer
