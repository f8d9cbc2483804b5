"""Searches replayed on a grid in which every config of a space was measured; for benchmarks that compare searches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import moocore
import numpy as np
import optuna

from results.analysis.effects import EffectModel
from results.objectives import parse_objectives
from search.optimize.candidates import Candidates
from search.optimize.forecast import Forecast
from search.optimize.initial import first_configs
from search.optimize.pruner import ConformalPruner
from search.optimize.sampler import ConfigSampler
from search.optimize.searcher import FrontSearcher
from search.study.budget import Budget, extremes
from spaces import Network, NetworkConfig, Space
from spaces.effects import Effects
from trainers.spec import TrialSpec

__all__ = ["Grid", "Measured", "Replay", "Spent", "alone", "dominates", "ours", "volume"]

_OBJECTIVES = parse_objectives(("val_top1", "size_bytes", "flops"), score_name="val_top1")


@dataclass(frozen=True)
class Measured:
    """What a grid knows of a config."""

    costs: dict[str, float]
    accuracies: tuple[float, ...]
    seconds: tuple[float, ...]
    """Of the start and its validation, then of each epoch."""


@dataclass(frozen=True)
class Spent:
    """A trial of a replay."""

    seconds: float
    losses: tuple[float, float, float]
    """Error, and costs as shares of the uncompressed network's, at its end, which a stopped trial does not reach."""
    stopped: bool = False


Replay = Iterator[Spent]


@dataclass(frozen=True)
class Grid:
    """All configs of a space, measured, and the effects of single blocks as studies of several seeds measure them."""

    model: str
    space: Space
    found: Mapping[str, Measured]
    effects: Sequence[Effects]
    images: int
    """Images that accuracies are measured on."""

    @property
    def network(self) -> Network:
        """The network of the space."""
        return self.space.network

    def of(self, config: NetworkConfig) -> Measured:
        """Return what is known of a config."""
        return self.found[self.network.digest(config)]

    def losses(self, measured: Measured) -> tuple[float, float, float]:
        """Return error and costs, the latter as shares of the uncompressed network's."""
        size, flops = (measured.costs[name] / self._whole[name] for name in ("size_bytes", "flops"))
        return 1 - measured.accuracies[-1], size, flops

    def library(self, seed: int) -> Effects:
        """Return the effects that a study of this seed knows."""
        return self.effects[seed % len(self.effects)]

    def forecast(self, seed: int) -> Forecast:
        """Return what they forecast."""
        model = EffectModel.fit(self.library(seed), self.network, self.space.minimum_templates)
        return Forecast.of(model, self.of(NetworkConfig()).accuracies[0])

    @cached_property
    def _whole(self) -> dict[str, float]:
        cost = self.network.cost(NetworkConfig())
        return {"size_bytes": cost.size_bytes, "flops": cost.flops}


def alone(grid: Grid, make: Callable[[int], optuna.samplers.BaseSampler], seed: int, trials: int) -> Replay:
    """Replay a sampler of Optuna by itself: what is drawn twice is trained twice."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    knobs = {name: values for name, values in grid.space.knobs.items() if len(values) > 1}
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"], sampler=make(seed))
    for _ in range(trials):
        trial = study.ask()
        values = {name: choices[trial.suggest_int(name, 0, len(choices) - 1)] for name, choices in knobs.items()}
        measured = grid.of(grid.space.decode(values))
        study.tell(trial, [measured.accuracies[-1], measured.costs["size_bytes"], measured.costs["flops"]])
        yield Spent(sum(measured.seconds), grid.losses(measured))


def ours(
    grid: Grid, sampler: str, miss_rate: float, seed: int, trials: int, *, effects: bool = False, workers: int = 1
) -> Replay:
    """Replay `overtone search`; the first trial bears the seconds of the effects.

    With several workers as many trials run at a time, and they end in the order in which they began.
    """
    forecast = grid.forecast(seed) if effects else None
    candidates, limits = Candidates(grid.space, forecast), extremes(grid.space, Budget())
    searcher = FrontSearcher(
        candidates,
        ConfigSampler(candidates, _OBJECTIVES, sampler=sampler, seed=seed, images=grid.images),
        ConformalPruner(_OBJECTIVES, miss_rate=miss_rate, forecast=forecast),
        budget=Budget(),
        cheapest=limits[0],
        objectives=_OBJECTIVES,
        make_spec=lambda config: TrialSpec(
            model=grid.model, weights="", weights_sha256="", data_fingerprint="", config=config
        ),
        seed=seed,
    )
    searcher.begin(trials, first=first_configs(grid.space, grid.model, limits, forecast=effects))
    charged, running = grid.library(seed).seconds if effects else 0.0, list[tuple[str, Measured]]()
    for number in range(trials + workers - 1):
        if number < trials and isinstance(suggestion := searcher.suggest(str(number)), dict):
            running.append((str(number), grid.of(NetworkConfig.from_json(suggestion["spec"]["config"]))))
        if running and (len(running) == workers or number >= trials - 1):
            spent = _end(grid, searcher, *running.pop(0))
            yield Spent(spent.seconds + charged, spent.losses, spent.stopped)
            charged = 0.0


def _end(grid: Grid, searcher: FrontSearcher, trial: str, measured: Measured) -> Spent:
    """Run a trial to its end, or to where it is stopped."""
    for run in range(1, len(measured.accuracies) + 1):
        report: dict[str, Any] = {**measured.costs, "scores": list(measured.accuracies[:run])}
        if run < len(measured.accuracies) and searcher.should_stop(trial, report):
            break
    stopped = trial in searcher.stopped
    searcher.on_trial_complete(trial, report | {"status": "finished", "score": measured.accuracies[-1]})
    return Spent(sum(measured.seconds[:run]), grid.losses(measured), stopped)


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether one is no worse in anything and better in something."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def volume(losses: Sequence[Sequence[float]], worst: float) -> float:
    """Return the dominated share of the box below an error of `worst` and the uncompressed network's costs."""
    points = np.array([[error / worst, *costs] for error, *costs in losses])
    points = points[(points < 1).all(axis=1)] if len(points) else points
    return float(moocore.hypervolume(points, ref=np.ones(3))) if len(points) else 0.0
