"""The point of a space that is nearest to a config: each knob at its own value, or the closest that the space has."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

from spaces import BlockConfig, NetworkConfig, Space
from spaces.space import Value
from spaces.spelling import in_blocks

__all__ = ["nearest"]

_UNCOMPRESSED = {"pruning_rate": 0.0, "bits": 32.0, "activation_bits": 32.0}
"""What none stands for among the numbers of a knob; 1 in any other."""
_LINEAR = ("harmonics_y", "harmonics_x", "pruning_rate")
"""Knobs whose distance is that of their values; of others it is that of their logarithms."""
_MORE_IS_LESS = ("pruning_rate", "groups", "exponent_block", "activation_block")
"""Knobs that compress more if they are higher."""


def nearest(space: Space, config: NetworkConfig) -> NetworkConfig:
    """Return the canonical config of the space that is nearest to this one, which may name any parts of the network.

    Of two values as near the one that compresses less is taken; of names, where the config's is missing, the first.
    Raises `UsageError` for a config that the network cannot take, or that treats the layers of a block differently.
    """
    blocks = in_blocks(space.network, config).blocks
    values = {
        f"{block}.{knob}": _nearest(knob, space.value(block, knob, blocks.get(block, BlockConfig())), allowed)
        for block, knobs in space.choices.items()
        for knob, allowed in knobs.items()
    }
    return space.decode(values)


def _nearest(knob: str, value: Value, allowed: Sequence[Value]) -> Value:
    if value in allowed or any(isinstance(choice, str) for choice in (value, *allowed)):
        return value if value in allowed else allowed[0]

    def place(choice: Value) -> float:
        number = _UNCOMPRESSED.get(knob, 1.0) if choice is None else float(choice)
        return number if knob in _LINEAR else log2(number)

    def rank(choice: Value) -> tuple[float, float]:
        return abs(place(choice) - place(value)), place(choice) * (1 if knob in _MORE_IS_LESS else -1)

    return min(allowed, key=rank)
