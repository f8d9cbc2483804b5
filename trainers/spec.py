"""What a trial is: everything that its result depends on, as plain data, and the identity of that."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from layers import UsageError
from layers.errors import translate_errors
from spaces import NetworkConfig
from trainers.data import DataSpec
from trainers.runtime.runtimes import DEFAULT_RUNTIME, RUNTIMES, check_threads
from trainers.start.choices import INITS, SALIENCIES
from trainers.training.recipe import TrainingRecipe

if TYPE_CHECKING:
    from spaces import Network

__all__ = ["TrialSpec", "check_format"]

_FORMAT = 2
"""The version of a spec's JSON, its key `format`."""


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """One trial: this network, compressed like this, fine-tuned like this on these data from this seed."""

    model: str
    """Name of the network, as `spaces.build_model` takes it."""
    weights: str
    """Where the trained weights are; not part of the identity."""
    weights_sha256: str
    """Content of the trained weights, `spaces.state_sha256` of the loaded network."""
    data: DataSpec = field(default_factory=DataSpec)
    """Where the data are and how they are split; the identity has their fingerprint instead."""
    data_fingerprint: str
    """Content of the splits, `Data.fingerprint`."""
    config: NetworkConfig = field(default_factory=NetworkConfig)
    """How the network is compressed."""
    recipe: TrainingRecipe = field(default_factory=TrainingRecipe)
    """How it is fine-tuned."""
    init: str = "calibrated"
    """How the compressed weights are initialized, one of `trainers.start.choices.INITS`."""
    saliency: str = "magnitude"
    """How the filters that stay as templates are chosen, one of `trainers.start.choices.SALIENCIES`."""
    epochs: int = 5
    """Epochs of fine-tuning; 0 measures the initialized network."""
    seed: int = 0
    """Seed of the calibration images, of shuffling and augmentation."""
    latency: bool = False
    """Whether latency is measured too; not part of the identity."""
    runtime: str = DEFAULT_RUNTIME
    """Where it is, one of `trainers.runtime.runtimes.RUNTIMES`; not part of the identity."""
    latency_threads: int | None = None
    """With how many threads, None for the usual ones (`trainers.runtime.latency.Place`); not part of the identity."""

    def __post_init__(self) -> None:
        for name in ("model", "weights", "weights_sha256", "data_fingerprint"):
            if not isinstance(getattr(self, name), str):
                raise UsageError(f"{name} (={getattr(self, name)!r}) must be a text")
        if self.init not in INITS:
            raise UsageError(f"init (={self.init!r}) must be one of {', '.join(INITS)}")
        if self.runtime not in RUNTIMES:
            raise UsageError(f"runtime (={self.runtime!r}) must be one of {', '.join(RUNTIMES)}")
        check_threads(self.latency_threads, "latency_threads")
        if self.saliency not in SALIENCIES:
            raise UsageError(f"saliency (={self.saliency!r}) must be one of {', '.join(SALIENCIES)}")
        if not isinstance(self.epochs, int) or self.epochs < 0:
            raise UsageError(f"epochs (={self.epochs}) must be a whole number of at least 0")
        self.recipe.check_length(self.epochs)
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise UsageError(f"seed (={self.seed}) must be a whole number of at least 0 and below 2**63")

    def identity(self, network: Network) -> dict[str, Any]:
        """Return what the result depends on, as plain JSON data; equal for two spellings of one compressed network.

        Saliency counts only if the network has templates. What calibrated starts round for is named: they once rounded
        each value to its nearest, and such results are others.
        """
        return {
            **({"rounds_for": "outputs"} if self.init == "calibrated" else {}),
            **({"saliency": self.saliency} if self.has_templates(network) else {}),
            "model": self.model,
            "weights": self.weights_sha256,
            "data": self.data_fingerprint,
            "network": network.digest(self.config),
            "recipe": self.recipe.identity(),
            "init": self.init,
            "epochs": self.epochs,
            "seed": self.seed,
        }

    def has_templates(self, network: Network) -> bool:
        """Return whether some layer's filters are rebuilt from templates."""
        return any(form.templates is not None for form in network.forms(self.config).values())

    def digest(self, network: Network) -> str:
        """Return the SHA-256 of the identity."""
        return hashlib.sha256(json.dumps(self.identity(network), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data, the inverse of `from_json`."""
        return {"format": _FORMAT, **asdict(self), "config": self.config.to_json(), "recipe": self.recipe.to_json()}

    def to_card(self) -> dict[str, Any]:
        """Return `to_json` without folders, for files that others get: it is the same wherever weights and data are."""
        data = {**asdict(self.data.resolved()), "name": self.data.label}
        del data["data_dir"]
        return {**self.to_json(), "weights": os.path.basename(self.weights), "data": data}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrialSpec:
        """Read a spec; raise `UsageError` naming a key that is missing, unknown or not allowed."""
        allowed = sorted(f.name for f in fields(cls))
        if not isinstance(data, Mapping):
            raise UsageError(f"spec (={data!r}) must be a mapping of {', '.join(allowed)}")
        check_format(data)
        parsed = {name: value for name, value in data.items() if name != "format"}
        unknown = sorted(set(parsed) - set(allowed))
        if unknown:
            raise UsageError(f"key (={unknown[0]!r}) of the spec must be one of {', '.join(allowed)}")
        parsers = {"data": _parse_data, "recipe": TrainingRecipe.from_json, "config": NetworkConfig.from_json}
        with translate_errors("spec cannot be read", TypeError, to=UsageError):
            for name, parse in parsers.items():
                if name in parsed:
                    parsed[name] = parse(parsed[name])
            return cls(**parsed)


def check_format(spec: Mapping[str, Any]) -> None:
    """Raise `UsageError` unless the JSON of a spec is of the format of this version."""
    if "format" not in spec:
        raise UsageError("the spec has no format: in its pre-release of Overtone, bits rounded the layers' inputs too")
    if spec["format"] != _FORMAT:
        raise UsageError(f"the spec's format (={spec['format']!r}) must be {_FORMAT}")


def _parse_data(data: Mapping[str, Any]) -> DataSpec:
    return DataSpec(**data)
