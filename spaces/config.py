"""The plain data that travels: how each block of a network is compressed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from layers import UsageError
from layers.blockfloat.format import AXES, SCALES, Axis, Scale
from layers.form import ALLOCATIONS, ARITHMETICS, Allocation, Arithmetic
from layers.series.basis import Basis, basis_name
from layers.templates.transforms import TRANSFORMS, Transform

__all__ = ["BlockConfig", "NetworkConfig"]

_BITS, _BLOCKS = (1, 16), (1, 128)
_RANGES = {
    "groups": (1, 1 << 16),
    "bits": _BITS,
    "exponent_block": _BLOCKS,
    "activation_bits": _BITS,
    "activation_block": _BLOCKS,
}
"""Least and most of the knobs that are whole numbers."""


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """How one block is compressed; `None` leaves a step out, and all `None` is the block as it was."""

    basis: Basis | None = None
    """Series basis of the filters of convolutions larger than 1 x 1."""
    harmonics: tuple[int, int] | None = None
    """Harmonics in y and x; a layer with fewer taps takes as many harmonics as taps."""
    allocation: Allocation | None = None
    """`filter`: a layer has as many coefficients as `harmonics` make, spent on the filters where they help most."""
    pruning_rate: float | None = None
    """Share of filters that are rebuilt from the others, in (0, 1)."""
    groups: int | None = None
    """Channel groups of the templates."""
    transform: Transform | None = None
    """How templates become filters; `scalar` if a pruning rate is given without it, and for filters of a single tap."""
    bits: int | None = None
    """Mantissa bits of stored weights, or of biases and norms in the block `norms_and_biases`."""
    exponent_block: int | None = None
    """Stored weights that share one exponent; 1 if bits are given without it."""
    exponent_axis: Axis | None = None
    """What the weights' blocks are cut from; `flat` if bits are given without it."""
    scale: Scale | None = None
    """`bfloat16`: weights are whole numbers with a real scale a filter, not with exponents; of 7 bits at most."""
    activation_bits: int | None = None
    """Mantissa bits to which a layer's input is rounded when it runs; nothing is stored in them."""
    activation_block: int | None = None
    """Input channels of a pixel that share one exponent; 1 if activation bits are given without it."""
    arithmetic: Arithmetic | None = None
    """What the layers compute in; `float` if it is left out."""

    def __post_init__(self) -> None:
        if self.basis is not None:
            object.__setattr__(self, "basis", basis_name(self.basis))
        if self.allocation is not None and self.allocation not in ALLOCATIONS:
            raise UsageError(f"allocation (={self.allocation!r}) must be {', '.join(ALLOCATIONS)}, or left out")
        if self.transform is not None and self.transform not in TRANSFORMS:
            raise UsageError(f"transform (={self.transform!r}) must be one of {', '.join(TRANSFORMS)}, or left out")
        if self.exponent_axis is not None and self.exponent_axis not in AXES:
            raise UsageError(f"exponent_axis (={self.exponent_axis!r}) must be one of {', '.join(AXES)}, or left out")
        if self.scale is not None and (self.scale not in SCALES or (self.bits or 0) > 7):
            raise UsageError(f"scale (={self.scale!r}) must be {', '.join(SCALES)}, of 7 bits at most, or left out")
        if self.arithmetic is not None and self.arithmetic not in ARITHMETICS:
            raise UsageError(f"arithmetic (={self.arithmetic!r}) must be one of {', '.join(ARITHMETICS)}, or left out")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not low <= value <= high):
                raise UsageError(f"{name} (={value!r}) must be a whole number from {low} to {high}, or left out")
        if self.activation_block is not None and self.activation_bits is None:
            raise UsageError(
                f"activation_block (={self.activation_block}) must be given together with activation_bits, as bits are "
                "those of stored weights alone"
            )
        if self.harmonics is not None:
            pair = tuple(self.harmonics) if isinstance(self.harmonics, Sequence) else ()
            if len(pair) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in pair):
                raise UsageError(f"harmonics (={self.harmonics}) must be two whole numbers of at least 1, (y, x)")
            object.__setattr__(self, "harmonics", pair)
        if self.allocation is not None and self.harmonics is None:
            raise UsageError(f"allocation (={self.allocation!r}) must be given together with harmonics, its budget")
        if (self.basis is None) != (self.harmonics is None):
            raise UsageError(f"basis (={self.basis!r}) and harmonics (={self.harmonics}) must be given together")
        rate = self.pruning_rate
        if rate is not None and not (isinstance(rate, int | float) and 0 < rate < 1):
            raise UsageError(f"pruning_rate (={rate!r}) must be between 0 and 1, or left out")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """How a network is compressed: a `BlockConfig` for each block that is compressed, by the block's name."""

    blocks: Mapping[str, BlockConfig] = field(default_factory=dict)
    """Block name -> how it is compressed; other blocks stay as they were."""
    minimum_templates: int = 8
    """Fewest templates (per group) that pruning leaves in a layer; the papers use 8 for CIFAR, 32 for ImageNet."""

    def __post_init__(self) -> None:
        if type(self.minimum_templates) is not int or self.minimum_templates < 1:
            raise UsageError(f"minimum_templates (={self.minimum_templates!r}) must be a whole number of at least 1")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data, without the knobs that are `None`."""
        blocks = {
            name: {k: v for k, v in asdict(block).items() if v is not None} for name, block in self.blocks.items()
        }
        blocks = {name: {k: list(v) if isinstance(v, tuple) else v for k, v in b.items()} for name, b in blocks.items()}
        return {"blocks": blocks, "minimum_templates": self.minimum_templates}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NetworkConfig:
        """Return the config of JSON data, the inverse of `to_json`; raise `UsageError` for an unknown key."""
        _check_keys(data, {"blocks", "minimum_templates"}, "config")
        knobs = {f.name for f in fields(BlockConfig)}
        blocks = data.get("blocks", {})
        if not isinstance(blocks, Mapping):
            raise UsageError(f"blocks (={blocks!r}) must be a mapping of block names to knobs")
        for name, block in blocks.items():
            _check_keys(block, knobs, f"block {name!r}")
        return cls(
            blocks={name: BlockConfig(**block) for name, block in blocks.items()},
            minimum_templates=data.get("minimum_templates", cls.minimum_templates),
        )


def _check_keys(data: object, allowed: set[str], owner: str) -> None:
    if not isinstance(data, Mapping):
        raise UsageError(f"{owner} (={data!r}) must be a mapping with the keys {', '.join(sorted(allowed))}")
    for key in data:
        if key not in allowed:
            raise UsageError(f"key (={key!r}) of {owner} must be one of {', '.join(sorted(allowed))}")
