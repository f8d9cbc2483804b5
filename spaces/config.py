"""The plain data that travels: how each block of a network is compressed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from layers import UsageError
from layers.basis import Family
from layers.form import Transform

__all__ = ["BlockConfig", "NetworkConfig"]


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """What is asked of one block; `None` leaves that step out, and all `None` is the block as it was."""

    basis: Family | None = None
    """Series family of the filters of convolutions larger than 1 x 1."""
    harmonics: tuple[int, int] | None = None
    """Harmonics in y and x; a layer with a smaller kernel takes as many as it has taps."""
    pruning_rate: float | None = None
    """Share of filters that are rebuilt from the others, in (0, 1)."""
    groups: int | None = None
    """Channel groups of the templates."""
    transform: Transform | None = None
    """How templates become filters; `scalar` where a pruning rate is given without one."""
    bits: int | None = None
    """Mantissa bits of weights and input activations."""
    exponent_block: int | None = None
    """Stored weights that share one exponent; 1 where bits are given without it."""

    def __post_init__(self) -> None:
        if self.harmonics is not None:
            pair = tuple(self.harmonics)
            if len(pair) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in pair):
                raise UsageError(f"harmonics (={self.harmonics}) must be two whole numbers of at least 1, (y, x).")
            object.__setattr__(self, "harmonics", pair)
        if (self.basis is None) != (self.harmonics is None):
            raise UsageError(f"basis (={self.basis!r}) and harmonics (={self.harmonics}) must be given together.")
        if self.pruning_rate is not None and not 0 < self.pruning_rate < 1:
            raise UsageError(f"pruning_rate (={self.pruning_rate}) must be between 0 and 1, or left out.")

    def describe(self) -> str:
        """The block in a few words."""
        words = []
        if self.basis is not None and self.harmonics is not None:
            words.append(f"{self.basis} {self.harmonics[0]}x{self.harmonics[1]}")
        if self.pruning_rate is not None:
            words.append(f"{self.pruning_rate:.0%} pruned" + (f" in {self.groups} groups" if self.groups else ""))
        if self.bits is not None:
            words.append(f"{self.bits} bits")
        return ", ".join(words) or "uncompressed"


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """How a network is compressed: a `BlockConfig` for each block that is, by the block's name."""

    blocks: Mapping[str, BlockConfig] = field(default_factory=dict)
    """Blocks that are not named stay as they were."""
    minimum_templates: int = 8
    """Fewest templates (per group) that pruning leaves in a layer; the papers use 8 for CIFAR, 32 for ImageNet."""

    def __post_init__(self) -> None:
        if self.minimum_templates < 1:
            raise UsageError(f"minimum_templates (={self.minimum_templates}) must be at least 1.")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, without the knobs that are `None`."""
        blocks = {
            name: {k: v for k, v in asdict(block).items() if v is not None} for name, block in self.blocks.items()
        }
        blocks = {name: {k: list(v) if isinstance(v, tuple) else v for k, v in b.items()} for name, b in blocks.items()}
        return {"blocks": blocks, "minimum_templates": self.minimum_templates}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NetworkConfig:
        """The inverse of `to_json`; `UsageError` names a key that does not belong."""
        _only(data, {"blocks", "minimum_templates"}, "config")
        knobs = {f.name for f in fields(BlockConfig)}
        blocks = {}
        for name, block in data.get("blocks", {}).items():
            _only(block, knobs, f"block {name!r}")
            blocks[name] = BlockConfig(**block)
        return cls(blocks=blocks, minimum_templates=data.get("minimum_templates", 8))

    def describe(self) -> str:
        """The network block by block, in a line."""
        return "; ".join(f"{name}: {block.describe()}" for name, block in self.blocks.items()) or "uncompressed"


def _only(data: object, allowed: set[str], what: str) -> None:
    if not isinstance(data, Mapping):
        raise UsageError(f"{what} (={data!r}) must be a mapping with the keys {', '.join(sorted(allowed))}.")
    for key in data:
        if key not in allowed:
            raise UsageError(f"{what} has the key {key!r}, allowed are {', '.join(sorted(allowed))}.")
