"""What Ray Tune asks for the next trial: draws within the budget, each compressed network once."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from layers import UsageError
from results.objectives import Objective
from search.budget import Budget, cheapest_within
from search.sampler import ConfigSampler
from spaces import NetworkConfig, Space
from trainers.spec import TrialSpec

__all__ = ["FrontSearcher"]

_DRAWS = 50
"""Draws of the sampler that may be over budget or known before other ways are tried."""
_BLENDS = 2000
"""Random configs, pulled into the budget, that may be known before the space counts as exhausted."""


class FrontSearcher(Searcher):
    """Suggests trials until `wanted` are asked for or no new config is found; learns as they end.

    A suggestion is plain data: `number`, `trial` (its id in the ledger) and `spec`. It keeps no state of its own on
    disk: a study is resumed from the ledger.
    """

    def __init__(
        self,
        space: Space,
        sampler: ConfigSampler,
        *,
        budget: Budget,
        objectives: tuple[Objective, ...],
        make_spec: Callable[[NetworkConfig], TrialSpec],
        seed: int,
    ) -> None:
        super().__init__()
        self._space, self._sampler, self._budget, self._objectives = space, sampler, budget, objectives
        self._make_spec = make_spec
        self._random = random.Random(seed)
        self._cheapest = cheapest_within(space, budget)
        self._known: set[str] = set()
        self._handles: dict[str, int] = {}
        self._left = 0
        self._number = 0
        self.exhausted = False

    def know(self, config: NetworkConfig, number: int, values: dict[str, float | None] | None) -> None:
        """A trial of the past; `values` by objective, `None` where it failed. Outside the space it only counts."""
        self._known.add(self._space.network.digest(config))
        self._number = max(self._number, number + 1)
        try:
            self._sampler.replay(config, self._ordered(values))
        except UsageError:
            return

    def begin(self, trials: int) -> None:
        """Allow this many more suggestions; the original network is the first, where the space and budget hold it."""
        self._left = trials
        original = NetworkConfig(minimum_templates=self._space.minimum_templates)
        try:
            self._space.encode(original)
        except UsageError:
            return
        if self._is_new(original):
            self._sampler.enqueue(original)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next trial, or `FINISHED`."""
        if self._left <= 0 or (drawn := self._draw()) is None:
            return Searcher.FINISHED
        handle, config = drawn
        self._left -= 1
        self._handles[trial_id] = handle
        self._known.add(self._space.network.digest(config))
        spec = self._make_spec(config)
        number, self._number = self._number, self._number + 1
        return {"number": number, "trial": spec.digest(self._space.network)[:10], "spec": spec.to_json()}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Learn from an ended trial; one that failed or was cut short teaches nothing."""
        handle = self._handles.pop(trial_id, None)
        if handle is None:
            return
        ended = result is not None and not error and result.get("status") == "finished"
        self._sampler.tell(handle, self._ordered(result) if ended else None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: the ledger is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was kept: a study is resumed from the ledger."""

    def _ordered(self, values: dict[str, Any] | None) -> list[float] | None:
        picked = [None if values is None else values.get(o.name) for o in self._objectives]
        return (
            None if any(value is None for value in picked) else [float(value) for value in picked if value is not None]
        )

    def _is_new(self, config: NetworkConfig) -> bool:
        network = self._space.network
        return network.digest(config) not in self._known and self._budget.fits(network.cost(config))

    def _draw(self) -> tuple[int, NetworkConfig] | None:
        for _ in range(_DRAWS):
            handle, config = self._sampler.ask()
            if self._is_new(config):
                return handle, config
            self._sampler.tell(handle, None)
        for _ in range(_BLENDS):
            config = self._blend()
            if self._is_new(config):
                self._sampler.enqueue(config)
                return self._sampler.ask()
        self.exhausted = True
        return None

    def _blend(self) -> NetworkConfig:
        """A random config, its blocks replaced in random order by the cheapest until it meets the budget."""
        network = self._space.network
        drawn = {name: self._random.choice(values) for name, values in self._space.knobs.items()}
        config = self._space.decode(drawn)
        for block in self._random.sample(list(network.blocks), len(network.blocks)):
            if self._budget.fits(network.cost(config)):
                break
            blocks = {**config.blocks, block: self._cheapest.blocks[block]}
            config = NetworkConfig(blocks=blocks, minimum_templates=config.minimum_templates)
        return network.canonical(config)
