"""Optuna's part: which config to try next. The only place that knows Optuna, with the sampler of ours beside it.

The Optuna study is rebuilt from the ledger's rows whenever a search begins; where a storage is named it is written
there for others to look at, and is never read again, so nothing can disagree.
Every knob with a choice is one distribution: an index into its values, ordered but for bases, transforms and exponent
axes. Before each draw the sampler is made anew from the study's seed and the draw's number, so what is drawn depends on
these and on what was told, not on how often the search was stopped in between. (Optuna's own may tell the difference:
a draw may spell a network with knobs that have no effect, and what is read back from the ledger never does.)
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import TrialState, create_trial

from layers import UsageError
from results.objectives import Objective
from search.optimize.candidates import Candidates, Ints
from search.optimize.ehvi import FORECAST, EHVISampler
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
    """What came of a draw."""

    values: Sequence[float] | None = None
    """Measured, in the order of the objectives; `None` where there are none."""
    forecast: float | None = None
    """Of a trial that was stopped early: the accuracy that it was going to have."""
    excess: Mapping[str, float] | None = None
    """Of a config over budget, which nobody tried: by how much of each limit, above 0 where it is broken."""

    @property
    def state(self) -> TrialState:
        """Stopped trials, and what was over budget, are pruned; what teaches nothing has failed."""
        if self.values is not None:
            return TrialState.COMPLETE
        return TrialState.FAIL if self.forecast is None and self.excess is None else TrialState.PRUNED


class ConfigSampler:
    """Draws points of a space and learns from what their configs measured."""

    def __init__(
        self,
        candidates: Candidates,
        objectives: Sequence[Objective],
        *,
        sampler: str,
        seed: int,
        budget: Budget | None = None,
        storage: BaseStorage | None = None,
        name: str | None = None,
    ) -> None:
        check_sampler(sampler)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._candidates, self._seed = candidates, seed
        self._distributions = {
            name: _distribution(name, len(values)) for name, values in self._candidates.knobs.items()
        }
        self._make = SAMPLERS[sampler] or partial(
            EHVISampler, self._candidates, tuple(objectives), budget or Budget(), self._distributions
        )
        if storage is not None and name is not None:
            with contextlib.suppress(KeyError):
                optuna.delete_study(study_name=name, storage=storage)
        self._study = optuna.create_study(
            directions=["maximize" if o.direction == "max" else "minimize" for o in objectives],
            storage=storage,
            study_name=name,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's warnings of what is experimental
            self._study.set_metric_names([objective.name for objective in objectives])
        self._asked: dict[int, optuna.Trial] = {}

    def ask(self, *draw: int) -> tuple[int, Ints]:
        """A handle for `tell`, and the point drawn (knobs,); equal draws come from equal numbers and histories."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._study.sampler = self._make(seed=_seed(self._seed, *draw))
            trial = self._study.ask(self._distributions)
        self._asked[trial.number] = trial
        drawn = trial.params
        return trial.number, np.array([drawn[name] for name in self._distributions], dtype=np.int64)

    def enqueue(self, point: Ints) -> None:
        """Make this point (knobs,) the next one that `ask` gives."""
        self._study.enqueue_trial(self._params(point))

    def tell(self, handle: int, told: Observation) -> None:
        """What came of a drawn config."""
        trial = self._asked.pop(handle)
        if told.forecast is not None:
            trial.set_user_attr(FORECAST, told.forecast)
        for name, value in (told.excess or {}).items():
            trial.set_constraint(name, value)
        self._study.tell(trial, told.values, state=told.state)

    def replay(self, point: Ints, told: Observation) -> None:
        """Learn from a trial of the past, which was at this point (knobs,)."""
        trial = create_trial(
            state=told.state,
            params=self._params(point),
            distributions=self._distributions,
            values=None if told.values is None else list(told.values),
            user_attrs={} if told.forecast is None else {FORECAST: told.forecast},
        )
        self._study.add_trial(trial)

    def _params(self, point: Ints) -> dict[str, int]:
        return dict(zip(self._distributions, point.tolist(), strict=True))


def check_sampler(name: str) -> None:
    """Raise `UsageError` where there is no sampler of this name."""
    if name not in SAMPLERS:
        raise UsageError(f"sampler (={name!r}) must be one of {', '.join(SAMPLERS)}.")


def _distribution(name: str, choices: int) -> BaseDistribution:
    if name.endswith(_UNORDERED):
        return CategoricalDistribution(list(range(choices)))
    return IntDistribution(0, choices - 1)


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
