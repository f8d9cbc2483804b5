"""What Ray Tune asks for the next trial: draws within the budget, each network once, nothing that was measured."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ray.tune.search import Searcher

from layers import UsageError
from results.objectives import Objective
from results.schema import TrialStatus
from search.optimize.candidates import Candidates, Floats, Ints
from search.optimize.pruner import ConformalPruner
from search.optimize.retries import RetryPolicy
from search.optimize.sampler import ConfigSampler, Observation
from search.study.budget import Budget
from search.study.record import network_config, row_accuracies
from spaces import NetworkConfig
from trainers.spec import TrialSpec

__all__ = ["FrontSearcher"]

_DRAWS = 50
"""Draws of the sampler that may be over budget or known before other ways are tried."""
_BLENDS = 2000
"""Random configs, pulled into the budget, that may be known before the space counts as exhausted."""

_Drawn = tuple[int, NetworkConfig, Floats]
"""What the sampler calls a draw, the canonical config, its features."""

Answer = Callable[[dict[str, Any], Mapping[str, Any]], None]


class FrontSearcher(Searcher):
    """Suggests trials until `wanted` are asked for or no new config is found; learns as they end.

    A suggestion is plain data: `number`, `trial` (its id in the ledger) and `spec`. It keeps no state of its own on
    disk: a study is resumed from the ledger.
    """

    def __init__(
        self,
        candidates: Candidates,
        sampler: ConfigSampler,
        pruner: ConformalPruner,
        *,
        budget: Budget,
        cheapest: NetworkConfig,
        objectives: Sequence[Objective],
        make_spec: Callable[[NetworkConfig], TrialSpec],
        seed: int,
    ) -> None:
        """`cheapest` meets the budget."""
        super().__init__()
        self._candidates, self._space = candidates, candidates.space
        self._sampler, self._pruner = sampler, pruner
        self._budget, self._cheapest, self._objectives = budget, cheapest, tuple(objectives)
        self._make_spec, self._seed = make_spec, seed
        self._known: set[str] = set()
        self._asked: dict[str, tuple[int, Floats, dict[str, Any]]] = {}
        self._waiting: list[dict[str, Any]] = []
        self._seeds: list[NetworkConfig] = []
        self._measured: Mapping[str, Mapping[str, Any]] = {}
        self._answer: Answer | None = None
        self._left = 0
        self._number = 0
        self.exhausted = False
        self.stopped: set[str] = set()
        """Ray Tune's ids of the trials that were given up."""
        self.attempts = RetryPolicy()

    def add_row(self, row: Mapping[str, Any]) -> None:
        """Learn from a row of the ledger; one outside the space or budget only counts as known."""
        config = network_config(row)
        self._known.add(self._space.network.digest(config))
        self._number = max(self._number, row["number"] + 1)
        try:
            point = self._candidates.point(config)
        except UsageError:
            return
        self._sampler.replay(point, self._told(row, row["status"], row_accuracies(row), self._features(point)))

    def begin(
        self,
        trials: int,
        *,
        seeds: Iterable[NetworkConfig] = (),
        waiting: Sequence[dict[str, Any]] = (),
        measured: Mapping[str, Mapping[str, Any]] | None = None,
        answer: Answer | None = None,
    ) -> None:
        """Allow this many more suggestions.

        First come those `waiting`, which were suggested before and have not ended; then the `seeds` that space and
        budget hold. What a row of `measured` (by spec digest) tells is not run: `answer` is given the suggestion and
        the row.
        """
        self._left, self._seeds, self._waiting = trials, list(seeds), list(waiting)
        self._measured, self._answer = measured or {}, answer
        self._number = max([self._number, *(suggestion["number"] + 1 for suggestion in self._waiting)])

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next trial; none for now while others run, which may have to be begun again; or `FINISHED`."""
        while self._left > 0 and (self._waiting or not self.exhausted):
            waiting = self._waiting.pop(0) if self._waiting else None
            drawn = self._draw() if waiting is None else self._taken(TrialSpec.from_json(waiting["spec"]).config)
            if drawn is None:
                break
            handle, config, features = drawn
            self._left -= 1
            self._known.add(self._space.network.digest(config))
            spec = self._make_spec(config)
            digest = spec.digest(self._space.network)
            suggestion = waiting or {"number": self._number, "trial": digest[:10], "spec": spec.to_json()}
            self._number = max(self._number, suggestion["number"] + 1)
            row = self._measured.get(digest)
            if row is None or self._answer is None:
                self._asked[trial_id] = handle, features, suggestion
                return suggestion
            self._sampler.tell(handle, self._told(row, row["status"], row_accuracies(row), features))
            self._answer(suggestion, row)
        return None if self._asked else Searcher.FINISHED

    def should_stop(self, trial_id: str, report: Mapping[str, Any]) -> bool:
        """Whether the trial of this report cannot enter the front any more; it then counts as stopped."""
        if trial_id in self._asked and self._pruner.should_prune(
            report, report["accuracies"], self._asked[trial_id][1]
        ):
            self.stopped.add(trial_id)
        return trial_id in self.stopped

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Learn from an ended trial; one that failed or was interrupted teaches nothing.

        With `error` its worker has died.
        """
        if trial_id not in self._asked:
            return
        handle, features, suggestion = self._asked.pop(trial_id)
        if error and self.attempts.should_retry(trial_id, suggestion):
            self._waiting.append(suggestion)
            self._left += 1
        report = {} if result is None or error else result
        status = TrialStatus.PRUNED.value if trial_id in self.stopped else report.get("status")
        self._sampler.tell(handle, self._told(report, status, report.get("accuracies", ()), features))

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: the ledger is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was kept: a study is resumed from the ledger."""

    def _told(
        self, values: Mapping[str, Any], status: str | None, accuracies: Sequence[float], features: Floats
    ) -> Observation:
        """What the sampler learns of a trial; a finished one teaches the judge too."""
        ordered = [values.get(objective.name) for objective in self._objectives]
        if status == TrialStatus.FINISHED and all(value is not None for value in ordered):
            self._pruner.observe(values, accuracies, features)
            return Observation(values=[float(value or 0) for value in ordered])
        if status == TrialStatus.PRUNED and accuracies:
            forecast = self._pruner.forecast(accuracies, features)
            return Observation(forecast=accuracies[-1] if forecast is None else forecast[0])
        return Observation()

    def _features(self, point: Ints) -> Floats:
        found: Floats = self._candidates.look(point[None]).features[0]
        return found

    def _is_new(self, config: NetworkConfig) -> bool:
        network = self._space.network
        return network.digest(config) not in self._known and self._budget.fits(network.cost(config))

    def _taken(self, config: NetworkConfig) -> _Drawn:
        """What the sampler calls a config that it did not draw itself."""
        point = self._candidates.point(config)
        self._sampler.enqueue(point)
        return self._sampler.ask(self._number, 0)[0], config, self._features(point)

    def _draw(self) -> _Drawn | None:
        while self._seeds:
            config = self._seeds.pop(0)
            if self._is_new(config) and self._holds(config):
                return self._taken(config)
        for attempt in range(_DRAWS):
            handle, point = self._sampler.ask(self._number, attempt)
            config = self._candidates.config(point)
            if self._is_new(config):
                return handle, config, self._features(point)
            cost = self._space.network.cost(config)
            self._sampler.tell(
                handle, Observation(excess=None if self._budget.fits(cost) else self._budget.excess(cost))
            )
        draws = random.Random(f"{self._seed} {self._number}")
        for _ in range(_BLENDS):
            config = self._blend(draws)
            if self._is_new(config):
                return self._taken(config)
        self.exhausted = True
        return None

    def _holds(self, config: NetworkConfig) -> bool:
        try:
            self._space.encode(config)
        except UsageError:
            return False
        return True

    def _blend(self, draws: random.Random) -> NetworkConfig:
        """A random config, its blocks replaced in random order by the cheapest until it meets the budget."""
        network = self._space.network
        drawn = {name: draws.choice(values) for name, values in self._space.knobs.items()}
        config = self._space.decode(drawn)
        for block in draws.sample(list(network.blocks), len(network.blocks)):
            if self._budget.fits(network.cost(config)):
                break
            blocks = {**config.blocks, block: self._cheapest.blocks[block]}
            config = NetworkConfig(blocks=blocks, minimum_templates=config.minimum_templates)
        return network.canonical(config)
