"""The settings of a study: plain data that become the study's record, and come back from it to resume."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from layers.errors import OvertoneError, UsageError
from results.objectives import Objective, parse_objectives
from search.study.budget import Budget
from spaces.blocks import Granularity
from spaces.config import NetworkConfig
from spaces.weights_source import absolute_weights
from trainers.data.spec import DataSpec
from trainers.runtime.place import Place
from trainers.runtime.runtimes import DEFAULT_RUNTIME, RUNTIMES, check_runtime, check_threads
from trainers.score import SCORE_NAME
from trainers.start.choices import INITS, SALIENCIES
from trainers.training.recipe import RECIPES, TrainingRecipe

if TYPE_CHECKING:
    from trainers.spec import TrialSpec

__all__ = [
    *("DEFAULT_OBJECTIVES", "DEFAULT_POINTS", "DEFAULT_RECIPE", "DEFAULT_SEEDS", "DEFAULT_STORE", "OF_TRIALS"),
    *("StudyPlan", "check_same_settings"),
]

DEFAULT_STORE = "runs"
"""Folder of studies where no store is named."""
DEFAULT_RECIPE = "finetune"
"""Name of the recipe that trials are fine-tuned by."""
DEFAULT_SEEDS = 3
"""Further seeds that trials are confirmed with."""
DEFAULT_POINTS = 12
"""Networks that are sketched."""
OF_TRIALS = ("recipe", "epochs", "sampler", "miss_rate", "warm_start", "trials", "keep")
"""Settings that a sketch does not depend on: the first search may choose them."""
DEFAULT_OBJECTIVES = (SCORE_NAME, "size_bytes", "flops")
_LATENCIES = ("latency_ms", "latency_b64_ms")
"""Objectives for which a trial measures latency, both of them at once."""
_MAY_DIFFER = frozenset({"trials", "weights"})
"""Settings that may change when a study is resumed: of the weights the content counts, not the path."""


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """The settings of a study: which network on which data, what to optimize, how a trial is run."""

    model: str
    weights: str
    """Path or torchvision name of the trained weights, `FILE#KEY` for one of several networks in a file."""
    data: DataSpec = field(default_factory=DataSpec)
    objectives: tuple[str, ...] = DEFAULT_OBJECTIVES
    budget: Budget = field(default_factory=Budget)
    """Costs that no trial may exceed."""
    granularity: Granularity = "stage"
    """What counts as a block of the search space."""
    space: Mapping[str, Any] = field(default_factory=dict)
    """Limits of the search space, as `Space.restrict` takes them."""
    minimum_templates: int = NetworkConfig.minimum_templates
    recipe: TrainingRecipe = RECIPES[DEFAULT_RECIPE]
    init: str = "calibrated"
    """How compressed weights begin."""
    saliency: str = "magnitude"
    """What decides which filters stay as templates."""
    epochs: int = 5
    seed: int = 0
    """Seed of the sampler and of every trial."""
    sampler: str = "ehvi"
    miss_rate: float = 0.1
    """Share of trials that may end above their optimistic forecast, by which trials are stopped early; 0 runs every
    trial to its end."""
    warm_start: tuple[str, ...] = ()
    """Studies whose finished trials it begins with."""
    trials: int = 24
    """Trials wanted in all."""
    runtime: str = DEFAULT_RUNTIME
    """Where latency is taken, if it is an objective: `torch` times the model on the trial's device, the others its ONNX
    file on the CPU."""
    latency_threads: int | None = None
    """CPU threads of that. None: those of the trial in torch, 1 in the others."""
    keep: str = "front"
    """Whose packed models go into the store: `front`, of trials that none before them dominates, or `all`."""

    def __post_init__(self) -> None:
        if self.init not in INITS:
            raise UsageError(f"init (={self.init!r}) must be one of {', '.join(INITS)}")
        if self.saliency not in SALIENCIES:
            raise UsageError(f"saliency (={self.saliency!r}) must be one of {', '.join(SALIENCIES)}")
        if self.trials < 1:
            raise UsageError(f"trials (={self.trials}) must be at least 1")
        if not 0 <= self.miss_rate < 1:
            raise UsageError(f"miss_rate (={self.miss_rate}) must be at least 0 and below 1")
        if self.keep not in ("front", "all"):
            raise UsageError(f"keep (={self.keep!r}) must be front or all")
        if self.runtime not in RUNTIMES:
            raise UsageError(f"runtime (={self.runtime!r}) must be one of {', '.join(RUNTIMES)}")
        check_threads(self.latency_threads, "latency_threads")
        for name in ("runtime", "latency_threads"):
            value = getattr(self, name)
            if value != getattr(StudyPlan, name) and not self.times:
                raise UsageError(
                    f"{name} (={value!r}) must come with an objective that it is about: {' or '.join(_LATENCIES)}"
                )

    @property
    def times(self) -> bool:
        """Whether latency is an objective, so that trials take it."""
        return not set(_LATENCIES).isdisjoint(self.objectives)

    @property
    def times_files(self) -> bool:
        """Whether it is that of the trials' ONNX files."""
        return self.times and self.runtime != DEFAULT_RUNTIME

    def place(self, *, cpus: float = 1, gpu: bool = False) -> Place | None:
        """Return where a trial with these resources takes latency if it runs on this machine, None if it takes none."""
        if not self.times:
            return None
        threads = max(1, int(cpus)) if self.runtime == DEFAULT_RUNTIME else None
        return Place.of(self.runtime, self.latency_threads or threads, "cuda" if gpu else "cpu")

    def check_runtime(self) -> None:
        """Raise `UsageError` if a package is missing that takes latency."""
        if self.times_files:
            from spaces.portable import check_format

            check_runtime(self.runtime)
            check_format("onnx")

    def parsed_objectives(self) -> tuple[Objective, ...]:
        """Return the objectives; raise `UsageError` if one is unknown."""
        return parse_objectives(self.objectives, score_name=SCORE_NAME)

    def located(self) -> StudyPlan:
        """Return the plan for processes with other working directories: paths of data and weights from the root.

        Objectives are spelled by their own names. Raises `UsageError` if one is unknown.
        """
        names = tuple(objective.name for objective in self.parsed_objectives())
        return replace(self, data=self.data.absolute(), weights=absolute_weights(self.weights), objectives=names)

    def to_record(self) -> dict[str, Any]:
        """Return plain JSON data, the inverse of `from_record`."""
        settings = {**asdict(self), "recipe": self.recipe.to_json(), "score_name": SCORE_NAME}
        record: dict[str, Any] = json.loads(json.dumps(settings))
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> StudyPlan:
        """Return the plan in a study's record, which may hold more.

        Raises `OvertoneError` if the record lacks a setting.
        """
        missing = [setting.name for setting in fields(cls) if setting.name not in record]
        if missing:
            raise OvertoneError(f"the record of study {record.get('name')!r} lacks {', '.join(missing)}")
        settings = {setting.name: record[setting.name] for setting in fields(cls)}
        parsed = {
            "data": DataSpec(**settings["data"]),
            "objectives": tuple(settings["objectives"]),
            "budget": Budget(**settings["budget"]),
            "recipe": TrainingRecipe.from_json(settings["recipe"]),
            "warm_start": tuple(settings["warm_start"]),
        }
        return cls(**{**settings, **parsed})

    def spec(self, config: NetworkConfig, *, weights_sha256: str, data_fingerprint: str) -> TrialSpec:
        """Return the trial of one config."""
        from trainers.spec import TrialSpec

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
            latency=self.times,
            runtime=self.runtime,
            latency_threads=self.latency_threads,
        )

    def sketch_spec(self, config: NetworkConfig, *, weights_sha256: str, data_fingerprint: str) -> TrialSpec:
        """Return the start and validation of one config, without training: the same whatever the recipe of trials."""
        spec = self.spec(config, weights_sha256=weights_sha256, data_fingerprint=data_fingerprint)
        untrained = replace(spec, recipe=TrainingRecipe(), epochs=0)
        return replace(untrained, latency=False, runtime=DEFAULT_RUNTIME, latency_threads=None)


def check_same_settings(record: Mapping[str, Any], settings: Mapping[str, Any], but: Collection[str] = ()) -> None:
    """Raise `UsageError` if a study's record differs from these settings, naming the first that does.

    Those named in `but` may differ.
    """
    for key, value in settings.items():
        stored = record.get(key)
        if stored == value or key in _MAY_DIFFER or key in but:
            continue
        if key == "network":
            from spaces.identity import network_difference

            if part := network_difference(stored, value):
                raise UsageError(f"study {record.get('name')!r} was begun with another network, of other {part}")
            continue
        if isinstance(stored, dict) and isinstance(value, dict):
            key, stored, value = next(
                (f"{key}.{part}", stored.get(part), value.get(part))
                for part in {**stored, **value}
                if stored.get(part) != value.get(part)
            )
        study = record.get("name")
        raise UsageError(f"study {study!r} exists with {key} {stored!r}, {value!r} was given: take another name")
