"""Optuna's part: which config to try next. Nothing else knows Optuna but our own sampler in `search.optimize.ehvi`.

The Optuna study lives in memory, and is rebuilt from the ledger's rows whenever a search begins, so nothing can
disagree.
Every knob with a choice is one distribution: an index into its values, ordered except for bases, transforms and
exponent axes. Before each draw the sampler is made anew from the study's seed and the draw's number, so a draw depends
on these and on the observations, not on how often the search was stopped in between. (Optuna's own samplers may tell
the difference: a draw may spell a network with knobs that have no effect, and a row of the ledger never does.)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from layers import UsageError
from results.objectives import Objective
from search.optimize.candidates import Candidates, Ints
from search.optimize.ehvi import EHVISampler
from search.optimize.history import History
from search.study.budget import Budget

__all__ = ["SAMPLERS", "ConfigSampler", "Observation", "check_sampler"]

SAMPLERS: dict[str, Callable[..., BaseSampler] | None] = {
    "ehvi": None,
    "tpe": partial(TPESampler, multivariate=True, constant_liar=True),
    "nsga2": NSGAIISampler,
    "nsga3": NSGAIIISampler,
    "gp": GPSampler,
    "random": RandomSampler,
}
"""Samplers by name, each made from a seed; `ehvi` is `search.optimize.ehvi`, which knows the space too."""

_UNORDERED = (".basis", ".transform", ".exponent_axis")


@dataclass(frozen=True, kw_only=True)
class Observation:
    """The outcome of a draw."""

    values: Sequence[float] | None = None
    """Measured values, in the order of the objectives; `None` if there are none."""
    forecast: float | None = None
    """The final score that was forecast for a trial that was stopped early."""
    excess: Mapping[str, float] | None = None
    """By how much of each limit a config was over budget, above 0 if the limit is broken; it was not tried."""

    @property
    def state(self) -> TrialState:
        """Optuna's state: pruned if the trial was stopped or over budget, failed if it teaches nothing."""
        if self.values is not None:
            return TrialState.COMPLETE
        return TrialState.FAIL if self.forecast is None and self.excess is None else TrialState.PRUNED


class ConfigSampler:
    """Draws points of a space, and learns from what their configs measured."""

    def __init__(
        self,
        candidates: Candidates,
        objectives: Sequence[Objective],
        *,
        sampler: str,
        seed: int,
        budget: Budget | None = None,
        images: int | None = None,
    ) -> None:
        """`images` are those that scores are measured on, if these are shares of them."""
        check_sampler(sampler)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._seed = seed
        self._distributions = {name: _distribution(name, len(values)) for name, values in candidates.knobs.items()}
        columns = [objective.column for objective in objectives]
        score = [objective.direction for objective in objectives].index("max")
        self._starts: list[Ints] = []
        self._history = History(candidates, columns, score)
        self._learns_from_study = SAMPLERS[sampler] is not None
        """Optuna's samplers do; ours has the history."""
        self._make_sampler = SAMPLERS[sampler] or partial(
            EHVISampler, candidates, self._history, budget or Budget(), self._distributions, self._starts, images
        )
        self._study = optuna.create_study(
            directions=["maximize" if o.direction == "max" else "minimize" for o in objectives]
        )
        self._open: dict[int, tuple[optuna.Trial, int]] = {}

    def ask(self, *draw: int) -> tuple[int, Ints]:
        """Return a handle for `tell` and the point drawn (knobs,); equal numbers and histories give equal draws."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._study.sampler = self._make_sampler(seed=_seed(self._seed, *draw))
            trial = self._study.ask(self._distributions)
        params = trial.params
        point = np.array([params[name] for name in self._distributions], dtype=np.int64)
        self._open[trial.number] = trial, self._history.add(point)
        return trial.number, point

    def offer(self, point: Ints) -> None:
        """Have `ehvi` look at this point (knobs,) at every draw, until it is drawn."""
        self._starts.append(point)

    def enqueue(self, point: Ints) -> None:
        """Make this point (knobs,) the next one that `ask` returns."""
        self._study.enqueue_trial(self._params(point))

    def tell(self, handle: int, observation: Observation) -> None:
        """Learn the outcome of a draw."""
        trial, place = self._open.pop(handle)
        self._history.end(place, observation.values, observation.forecast)
        for name, value in (observation.excess or {}).items():
            trial.set_constraint(name, value)
        self._study.tell(trial, observation.values, state=observation.state)

    def replay(self, point: Ints, observation: Observation) -> None:
        """Learn from an earlier trial, which was at this point (knobs,)."""
        if self._learns_from_study:
            trial = create_trial(
                state=observation.state,
                params=self._params(point),
                distributions=self._distributions,
                values=None if observation.values is None else list(observation.values),
            )
            self._study.add_trial(trial)
        self._history.end(self._history.add(point), observation.values, observation.forecast)

    def _params(self, point: Ints) -> dict[str, int]:
        return dict(zip(self._distributions, point.tolist(), strict=True))


def check_sampler(name: str) -> None:
    """Raise `UsageError` if there is no sampler of this name."""
    if name not in SAMPLERS:
        raise UsageError(f"sampler (={name!r}) must be one of {', '.join(SAMPLERS)}")


def _distribution(name: str, choices: int) -> BaseDistribution:
    if name.endswith(_UNORDERED):
        return CategoricalDistribution(list(range(choices)))
    return IntDistribution(0, choices - 1)


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
