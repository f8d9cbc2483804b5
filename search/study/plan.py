"""A study as asked: plain settings that become the study's record, and come back from it to resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from layers import UsageError
from search.study.budget import Budget
from spaces import NetworkConfig
from spaces.blocks import Granularity
from trainers.data import DataSpec
from trainers.spec import TrialSpec
from trainers.start.saliency import SALIENCIES
from trainers.start.start import INITS
from trainers.training.recipe import TrainingRecipe

__all__ = ["DEFAULT_OBJECTIVES", "StudyPlan"]

DEFAULT_OBJECTIVES = ("val_top1", "size_bytes", "flops")
_LATENCIES = frozenset({"latency_ms", "latency_b64_ms"})
"""Objectives for which a trial measures latency, both of them at once."""


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """What a study asks: which network on which data, what to optimize, how a trial is run."""

    model: str
    weights: str
    """Path or torchvision name of the trained weights."""
    data: DataSpec = field(default_factory=DataSpec)
    objectives: tuple[str, ...] = DEFAULT_OBJECTIVES
    budget: Budget = field(default_factory=Budget)
    """Costs that no trial may exceed."""
    granularity: Granularity = "stage"
    """What counts as a block of the search space."""
    space: Mapping[str, Any] = field(default_factory=dict)
    """Limits of the search space, as `Space.restrict` takes them."""
    minimum_templates: int = 8
    recipe: TrainingRecipe = field(default_factory=TrainingRecipe)
    init: str = "calibrated"
    """How compressed weights begin."""
    saliency: str = "magnitude"
    """By what filters stay as templates."""
    epochs: int = 5
    seed: int = 0
    """Seed of the sampler and of every trial."""
    sampler: str = "ehvi"
    miss_rate: float | None = 0.1
    """Share of trials that may end above their optimistic forecast, by which trials are stopped early; `None` runs
    every trial to its end."""
    warm_start: tuple[str, ...] = ()
    """Studies whose finished trials it begins with."""
    trials: int = 24
    """Trials wanted in all."""
    keep: str = "front"
    """Whose packed models go into the store: `front`, of trials that none before them dominates, or `all`."""

    def __post_init__(self) -> None:
        if self.init not in INITS:
            raise UsageError(f"init (={self.init!r}) must be one of {', '.join(INITS)}.")
        if self.saliency not in SALIENCIES:
            raise UsageError(f"saliency (={self.saliency!r}) must be one of {', '.join(SALIENCIES)}.")
        if self.trials < 1:
            raise UsageError(f"trials (={self.trials}) must be at least 1.")
        if self.miss_rate is not None and not 0 < self.miss_rate < 1:
            raise UsageError(f"miss_rate (={self.miss_rate}) must be at least 0 and below 1.")
        if self.keep not in ("front", "all"):
            raise UsageError(f"keep (={self.keep!r}) must be front or all.")

    def to_record(self) -> dict[str, Any]:
        """Plain JSON data, the inverse of `from_record`."""
        record: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> StudyPlan:
        """The plan in a study's record, which may hold more; one that does not say what it keeps has kept all, and
        one that does not say whether it stops trials has stopped none.
        """
        record = {"keep": "all", "miss_rate": None, **record}
        known = {name: record[name] for name in (f.name for f in fields(cls)) if name in record}
        nested = {"data": DataSpec, "recipe": TrainingRecipe, "budget": Budget}
        parsed = {name: parse(**known[name]) for name, parse in nested.items() if name in known}
        lists = {name: tuple(known.get(name, ())) for name in ("objectives", "warm_start")}
        return cls(**{**known, **parsed, **lists})

    def spec(self, config: NetworkConfig, *, weights_sha256: str, data_fingerprint: str) -> TrialSpec:
        """The trial of one config."""
        return TrialSpec(
            model=self.model,
            weights=self.weights,
            weights_sha256=weights_sha256,
            data=self.data,
            data_fingerprint=data_fingerprint,
            config=config,
            recipe=self.recipe,
            init=self.init,
            saliency=self.saliency,
            epochs=self.epochs,
            seed=self.seed,
            latency=not _LATENCIES.isdisjoint(self.objectives),
        )
