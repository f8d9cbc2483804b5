"""Optuna's part: which config to try next. The only place that knows Optuna.

The Optuna study lives in memory and is rebuilt from the ledger's rows; nothing else is kept, so nothing can disagree.
Every knob with a choice is one distribution: an index into its values, ordered but for bases and exponent axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from layers import UsageError
from results.objectives import Objective
from spaces import NetworkConfig, Space

__all__ = ["SAMPLERS", "ConfigSampler"]

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True, constant_liar=True),
    "nsga2": lambda seed: NSGAIISampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}
"""Samplers by name, each made from a seed."""


class ConfigSampler:
    """Draws configs of a space and learns from what they measured."""

    def __init__(self, space: Space, objectives: Sequence[Objective], *, sampler: str, seed: int) -> None:
        if sampler not in SAMPLERS:
            raise UsageError(f"sampler (={sampler!r}) must be one of {', '.join(SAMPLERS)}.")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._study = optuna.create_study(
            directions=["maximize" if o.direction == "max" else "minimize" for o in objectives],
            sampler=SAMPLERS[sampler](seed),
        )
        self._distributions = {
            name: _distribution(name, len(values)) for name, values in space.knobs.items() if len(values) > 1
        }

    def ask(self) -> tuple[int, NetworkConfig]:
        """A handle for `tell`, and the canonical config drawn."""
        trial = self._study.ask(self._distributions)
        knobs = self._space.knobs
        return trial.number, self._space.decode({name: knobs[name][index] for name, index in trial.params.items()})

    def enqueue(self, config: NetworkConfig) -> None:
        """Make this config the next one that `ask` gives."""
        self._study.enqueue_trial(self._indices(config))

    def tell(self, handle: int, values: Sequence[float] | None) -> None:
        """What a drawn config measured, in the order of the objectives; `None` where it failed or was not tried."""
        if values is None:
            self._study.tell(handle, state=TrialState.FAIL)
        else:
            self._study.tell(handle, values)

    def replay(self, config: NetworkConfig, values: Sequence[float] | None) -> None:
        """Learn from a trial of the past."""
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        self._study.add_trial(
            create_trial(state=state, params=self._indices(config), distributions=self._distributions, values=values)
        )

    def _indices(self, config: NetworkConfig) -> dict[str, int]:
        knobs, values = self._space.knobs, self._space.encode(config)
        return {name: knobs[name].index(values[name]) for name in self._distributions}


def _distribution(name: str, choices: int) -> BaseDistribution:
    if name.endswith((".basis", ".exponent_axis")):
        return CategoricalDistribution(list(range(choices)))
    return IntDistribution(0, choices - 1)
