"""The searcher that Ray Tune asks for trials: draws within the budget, each network once, reusing earlier results."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.search import Searcher

from layers import UsageError
from results.objectives import Objective
from results.schema import TrialStatus
from search.optimize.candidates import Candidates, Floats, Ints
from search.optimize.initial import FirstConfigs
from search.optimize.pruner import ConformalPruner
from search.optimize.retries import RetryPolicy
from search.optimize.sampler import ConfigSampler, Observation
from search.study.budget import Budget, may_try
from search.study.record import network_config, row_scores
from search.study.reuse import earlier_latency
from spaces import NetworkConfig
from trainers.runtime.place import LATENCY
from trainers.spec import TrialSpec

__all__ = ["FrontSearcher"]

_DRAWS = 50
"""Draws of the sampler that may be over budget or not new before other ways are tried."""
_BLENDS = 2000
"""Random configs, pulled into the budget, that may be not new before the space counts as exhausted."""

_Draw = tuple[int, NetworkConfig, Floats]
"""The sampler's handle of a draw, the canonical config, its features."""

_OnReuse = Callable[[dict[str, Any], Mapping[str, Any]], None]
"""Called with a suggestion that is not run, and the row that answers it."""

_NO_CONFIGS = FirstConfigs()


class FrontSearcher(Searcher):
    """Suggests trials until there are as many as `begin` allows or no new config is left; learns as they end.

    A suggestion is plain data: `number`, `trial` (its id in the ledger) and `spec`. The searcher keeps no state of its
    own on disk: a study is resumed from the ledger.
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
        """`cheapest` must meet the budget."""
        super().__init__()
        self._candidates = candidates
        self._space = candidates.space
        self._sampler = sampler
        self._pruner = pruner
        self._budget = budget
        self._cheapest = cheapest
        self._objectives = tuple(objectives)
        self._make_spec = make_spec
        self._seed = seed
        self._digests: set[str] = set()
        """Of the networks that were suggested so far, in this run or before."""
        self._running: dict[str, tuple[int, Floats, dict[str, Any]]] = {}
        """Handle, features and suggestion of each running trial, by Ray Tune's id."""
        self._unfinished: list[dict[str, Any]] = []
        self._at_once: list[NetworkConfig] = []
        self._measured: Mapping[str, Mapping[str, Any]] = {}
        self._on_reuse: _OnReuse | None = None
        self._timed = False
        self._left = 0
        self._number = 0
        self.exhausted = False
        self.stopped: set[str] = set()
        """Ray Tune's ids of the trials that were stopped early."""
        self.retries = RetryPolicy()

    def add_row(self, row: Mapping[str, Any]) -> None:
        """Learn from a row of the ledger; of one outside the space or budget only that its config is not new."""
        config = network_config(row)
        self._digests.add(self._space.network.digest(config))
        self._number = max(self._number, row["number"] + 1)
        try:
            point = self._candidates.point(config)
        except UsageError:
            return
        self._sampler.replay(point, self._observe(row, row["status"], row_scores(row), self._features(point)))

    def begin(
        self,
        trials: int,
        *,
        first: FirstConfigs = _NO_CONFIGS,
        unfinished: Sequence[dict[str, Any]] = (),
        measured: Mapping[str, Mapping[str, Any]] | None = None,
        on_reuse: _OnReuse | None = None,
        timed: bool = False,
    ) -> None:
        """Allow this many more suggestions.

        First come those `unfinished`, which were suggested before and have not ended; then the `first` configs that lie
        within space and budget. A trial with a row in `measured` (by spec digest) is not run: `on_reuse` is called
        with the suggestion and the row. With `timed` it is suggested all the same, with what a worker must know of the
        row under `earlier`: it takes the trial's latency, or finds that it is the row's.
        """
        self._left = trials
        self._at_once = list(first.at_once)
        for config in first.offered:
            if may_try(config, self._space, self._budget):
                self._sampler.offer(self._candidates.point(config))
        self._unfinished = list(unfinished)
        self._measured = measured or {}
        self._on_reuse = on_reuse
        self._timed = timed
        self._number = max([self._number, *(suggestion["number"] + 1 for suggestion in self._unfinished)])

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Return the next trial; None for now while others run, which may have to be run again; or `FINISHED`."""
        while self._left > 0 and (self._unfinished or not self.exhausted):
            begun = self._unfinished.pop(0) if self._unfinished else None
            draw = self._draw() if begun is None else self._enqueue(TrialSpec.from_json(begun["spec"]).config)
            if draw is None:
                break
            handle, config, features = draw
            self._left -= 1
            self._digests.add(self._space.network.digest(config))
            spec = self._make_spec(config)
            digest = spec.digest(self._space.network)
            suggestion = begun or {"number": self._number, "trial": digest[:10], "spec": spec.to_json()}
            suggestion = {name: value for name, value in suggestion.items() if name != "earlier"}
            self._number = max(self._number, suggestion["number"] + 1)
            row = self._measured.get(digest)
            if row is not None and self._timed:
                suggestion["earlier"] = earlier_latency(row)
            if row is None or self._timed or self._on_reuse is None:
                self._running[trial_id] = handle, features, suggestion
                return suggestion
            self._sampler.tell(handle, self._observe(row, row["status"], row_scores(row), features))
            self._on_reuse(suggestion, row)
        return None if self._running else Searcher.FINISHED

    def should_stop(self, trial_id: str, report: Mapping[str, Any]) -> bool:
        """Return whether the trial of this report cannot enter the front any more; it then counts as stopped."""
        if trial_id in self._running and self._pruner.should_prune(
            report, report["scores"], self._running[trial_id][1]
        ):
            self.stopped.add(trial_id)
        return trial_id in self.stopped

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Learn from an ended trial; one that failed or was interrupted teaches nothing.

        With `error` its worker has died.
        """
        if trial_id not in self._running:
            return
        handle, features, suggestion = self._running.pop(trial_id)
        if error and self.retries.should_retry(trial_id, suggestion):
            self._unfinished.append(suggestion)
            self._left += 1
        report = {} if result is None or error else result
        if report.get("status") == "timed":
            row = {**self._measured[suggestion["earlier"]["spec_digest"]], **{name: report[name] for name in LATENCY}}
            self._sampler.tell(handle, self._observe(row, row["status"], row_scores(row), features))
            return
        status = TrialStatus.PRUNED.value if trial_id in self.stopped else report.get("status")
        self._sampler.tell(handle, self._observe(report, status, report.get("scores", ()), features))

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the ledger is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: a study is resumed from the ledger."""

    def _observe(
        self, values: Mapping[str, Any], status: str | None, scores: Sequence[float], features: Floats
    ) -> Observation:
        """Return what the sampler learns from a trial; a finished one teaches the pruner too.

        `values` is a row or a report, by column; `scores` are those before training and after each epoch.
        """
        ordered = [values.get(objective.column) for objective in self._objectives]
        if status == TrialStatus.FINISHED and all(value is not None for value in ordered):
            self._pruner.observe(values, scores, features)
            return Observation(values=[float(value or 0) for value in ordered])
        if status == TrialStatus.PRUNED and scores:
            forecast = self._pruner.forecast(scores, features)
            return Observation(forecast=scores[-1] if forecast is None else forecast[0])
        return Observation()

    def _features(self, point: Ints) -> Floats:
        features: Floats = self._candidates.describe(point[None]).features[0]
        return features

    def _is_new(self, config: NetworkConfig) -> bool:
        """Return whether a config meets the budget and was not suggested before."""
        network = self._space.network
        return network.digest(config) not in self._digests and self._budget.fits(network.cost(config))

    def _enqueue(self, config: NetworkConfig) -> _Draw:
        """Make the sampler draw this config."""
        point = self._candidates.point(config)
        self._sampler.enqueue(point)
        return self._sampler.ask(self._number, 0)[0], config, self._features(point)

    def _draw(self) -> _Draw | None:
        """Return the next new config, None if none is left.

        It is one of the first configs, else the sampler's, else one at random.
        """
        while self._at_once:
            config = self._at_once.pop(0)
            if self._is_new(config) and may_try(config, self._space, self._budget):
                return self._enqueue(config)
        for attempt in range(_DRAWS):
            handle, point = self._sampler.ask(self._number, attempt)
            config = self._candidates.config(point)
            if self._is_new(config):
                return handle, config, self._features(point)
            cost = self._space.network.cost(config)
            excess = None if self._budget.fits(cost) else self._budget.excess(cost)
            self._sampler.tell(handle, Observation(excess=excess))
        generator = random.Random(f"{self._seed} {self._number}")
        for _ in range(_BLENDS):
            config = self._blend(generator)
            if self._is_new(config):
                return self._enqueue(config)
        self.exhausted = True
        return None

    def _blend(self, generator: random.Random) -> NetworkConfig:
        """Return a random config, its blocks replaced in random order by the cheapest until it meets the budget."""
        network = self._space.network
        values = {name: generator.choice(choices) for name, choices in self._space.knobs.items()}
        config = self._space.decode(values)
        for block in generator.sample(list(network.blocks), len(network.blocks)):
            if self._budget.fits(network.cost(config)):
                break
            blocks = {**config.blocks, block: self._cheapest.blocks[block]}
            config = NetworkConfig(blocks=blocks, minimum_templates=config.minimum_templates)
        return network.canonical(config)
