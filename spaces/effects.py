"""Effects: what compressing one block alone does to a network before any training, as plain data.

A block is any part of a network by its module path, so that one library serves stages and single layers alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from layers.errors import UsageError
from spaces.config import BlockConfig, NetworkConfig

__all__ = ["Effect", "Effects"]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One block's compressed form, and what the network measures with it, all other blocks as they were."""

    block: str
    config: BlockConfig
    """Canonical."""
    loss: float
    """Mean cross-entropy in nats on the held-out images."""
    divergence: float
    """Mean Kullback-Leibler divergence in nats of its class probabilities from the uncompressed network's: by how much
    the loss would rise if labels were drawn from those. Never negative, and far more precise than a difference of two
    losses."""
    divergence_error: float
    """Standard error of the mean."""
    score: float
    """Share of these images, 0 to 1, whose class is found."""
    seconds: float
    """Compression, initialization and measurement."""
    bytes_saved: int = 0
    """By how much the packed network is smaller than uncompressed."""
    flops_saved: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data, the inverse of `from_json`."""
        config = NetworkConfig(blocks={self.block: self.config}).to_json()["blocks"][self.block]
        measured = {name: getattr(self, name) for name in (*_MEASURED, *_SAVED)}
        return {"block": self.block, "config": config, **measured}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Effect:
        """Return the effect of JSON data; raise `UsageError` if it is none."""
        data = _checked(data, "effect", {"block", "config", *_MEASURED, *_SAVED})
        config = NetworkConfig.from_json({"blocks": {data["block"]: data["config"]}}).blocks[data["block"]]
        return cls(block=data["block"], config=config, **_numbers(data, _MEASURED), **_whole(data, _SAVED))


@dataclass(frozen=True, kw_only=True)
class Effects:
    """A library of effects, all measured on the same images."""

    loss: float
    """Of the uncompressed network: mean cross-entropy in nats on the held-out training images."""
    score: float
    """The uncompressed network's share of these images whose class is found."""
    images: int
    """Held-out training images: none that a block was calibrated on."""
    calibration_images: int
    seed: int
    """Draws both sets of images."""
    minimum_templates: int = NetworkConfig.minimum_templates
    reference_s: float = 0.0
    """Seconds of the uncompressed network's own measurement."""
    effects: tuple[Effect, ...] = ()
    """In the order in which they were measured."""

    @property
    def seconds(self) -> float:
        """Seconds of all measurements together, on one worker."""
        return self.reference_s + sum(effect.seconds for effect in self.effects)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data, the inverse of `from_json`."""
        head = {name: getattr(self, name) for name in (*_COUNTS, *_REFERENCE)}
        return {**head, "effects": [effect.to_json() for effect in self.effects]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Effects:
        """Return the library of JSON data; raise `UsageError` if it is none."""
        data = _checked(data, "effects library", {"effects", *_COUNTS, *_REFERENCE})
        if not isinstance(data["effects"], list):
            raise UsageError(f"effects (={data['effects']!r}) must be a list of effects")
        effects = tuple(map(Effect.from_json, data["effects"]))
        return cls(**_whole(data, _COUNTS), **_numbers(data, _REFERENCE), effects=effects)


_MEASURED = ("loss", "divergence", "divergence_error", "score", "seconds")
_SAVED = ("bytes_saved", "flops_saved")
_REFERENCE = ("loss", "score", "reference_s")
_COUNTS = ("images", "calibration_images", "seed", "minimum_templates")


def _checked(data: object, owner: str, keys: set[str]) -> Mapping[str, Any]:
    if not isinstance(data, Mapping) or data.keys() != keys:
        raise UsageError(f"{owner} must be a mapping with the keys {', '.join(sorted(keys))}")
    return data


def _numbers(data: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    for name in names:
        if type(data[name]) not in (int, float):
            raise UsageError(f"{name} (={data[name]!r}) must be a number")
    return {name: float(data[name]) for name in names}


def _whole(data: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    for name in names:
        if type(data[name]) is not int:
            raise UsageError(f"{name} (={data[name]!r}) must be a whole number")
    return {name: data[name] for name in names}
