"""Measuring a study's effects on Ray before its first trial, where trials run and with a trial's resources.

Each worker takes every k-th of the planned forms, the most informative first, and hands back one effect at a time. Each
is kept in the store at once, so a stopped run goes on where it was, and another study of the same network and data
measures nothing again. Which forms are measured does not depend on time, so equal studies know equal effects. What is
done sooner than a worker starts, a few seconds for a small network, is measured by this process.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

import ray
import torch
from rich.console import Console

from layers import OvertoneError
from results.analysis.effects import EffectModel
from results.formatting import format_duration
from results.ledger.effects import EffectsLibrary
from search.optimize.effect_plan import effect_plan
from search.runner.cluster import Resources
from search.runner.progress import counting_bar
from search.runner.waiting import WaitingNotice
from search.study.plan import StudyPlan
from search.study.study_ledger import StudyLedger
from search.study.workload import Workload
from spaces import BlockConfig, Network, NetworkConfig, Space
from spaces.effects import Effect, Effects
from trainers.effects import EffectMeter, affordable_effects, effect_passes
from trainers.runtime.device import keep_freed_memory
from trainers.runtime.threads import num_threads

__all__ = ["EFFECTS_TRIALS", "ensure_effects", "known_effects", "planned_effects"]

EFFECTS_TRIALS = 1
"""Effects cost no more than so many trials."""
_LEAST_SHARE = 4
"""Effects that make it worth to start a worker."""
_ATTEMPTS = 3
"""Times that the workers may die."""
_HERE_MACS = 5e10
"""Multiply-accumulates that this process does by itself."""
_LINES = 10
"""Lines of progress where there is no terminal."""

_Pair = tuple[str, BlockConfig]
_Answer = Effects | tuple[_Pair, Effect | str]
"""A library without effects, or a form with its effect, or with why there is none."""


def planned_effects(space: Space, workload: Workload, epochs: int) -> list[_Pair]:
    """Return the forms that a study measures: as many of the plan as its bound allows."""
    return list(islice(effect_plan(space), affordable_effects(workload.data, trials=EFFECTS_TRIALS, epochs=epochs)))


def known_effects(study: StudyLedger) -> Effects | None:
    """Return all effects that the store knows of a study's network and data, whatever its blocks.

    Raises `UsageError` if the library is of others.
    """
    found = EffectsLibrary(study.ledger.store, study.record()).read()
    return None if found is None else found[0]


def ensure_effects(
    study: StudyLedger,
    workload: Workload,
    space: Space,
    plan: StudyPlan,
    resources: Resources,
    console: Console,
    ensure_held: Callable[[], None] = lambda: None,
) -> Effects | None:
    """Return the effects that the study plans, measured as far as the store does not know them; None without any.

    Runs on the Ray that is connected, `resources` are resolved. The study's record counts the seconds as `effects_s`.
    `ensure_held` raises once another process has taken the study. Raises `UsageError` if the library is of others.
    """
    planned = planned_effects(space, workload, plan.epochs)
    run = _Run(study, workload, plan, known_effects(study), ensure_held)
    missing = run.missing(planned)
    if missing:
        line = f"study {study.name}: {len(missing)} effects of single blocks to measure, {resources.line()}"
        console.print(line, highlight=False, soft_wrap=True)
        try:
            _measure(run, missing, resources, console)
        finally:
            run.close()
        console.print(run.line(), highlight=False, soft_wrap=True)
    return _in_order(run.effects, planned) if run.effects and planned else None


class _Run:
    """The effects of a run: those known before, and those that come in."""

    def __init__(
        self,
        study: StudyLedger,
        workload: Workload,
        plan: StudyPlan,
        known: Effects | None,
        ensure_held: Callable[[], None],
    ) -> None:
        self.effects = known
        self.workload, self.plan = workload, plan
        self.count = 0
        self.failed: list[str] = []
        self._study, self._ensure_held = study, ensure_held
        self._library = EffectsLibrary(study.ledger.store, study.record())
        self._seconds = 0.0
        self._ended: set[_Pair] = set()

    def missing(self, planned: Sequence[_Pair]) -> list[_Pair]:
        """Return the planned forms whose effect is not known, and that did not fail in this run."""
        known = {(effect.block, effect.config) for effect in (self.effects.effects if self.effects else ())}
        return [pair for pair in planned if pair not in known | self._ended]

    def begin(self, reference: Effects) -> None:
        """Take what a worker measured of the uncompressed network."""
        self._seconds += reference.reference_s
        head = dataclasses.replace(reference, effects=(), reference_s=0.0)
        if self.effects is None or dataclasses.replace(self.effects, effects=(), reference_s=0.0) != head:
            same_images = self.effects is not None and _images(self.effects) == _images(reference)
            kept = self.effects.effects if same_images and self.effects else ()
            self.effects = dataclasses.replace(reference, effects=kept)

    def keep(self, pair: _Pair, answer: Effect | str) -> None:
        """Keep an effect in the store, or the reason why there is none."""
        self._ended.add(pair)
        if isinstance(answer, str):
            self.failed.append(f"{pair[0]}: {answer}")
            return
        assert self.effects is not None
        self._seconds += answer.seconds
        self.count += 1
        self.effects = dataclasses.replace(self.effects, effects=(*self.effects.effects, answer))
        self._ensure_held()
        self.effects = self._library.write(self.effects, {})

    def close(self) -> None:
        """Note how far the rule is off in the library, and the seconds in the study's record."""
        if not self.count or self.effects is None:
            return
        self._ensure_held()
        self.effects = self._library.write(self.effects, _notes(self.effects, self.workload.network))
        spent = float(self._study.record().get("effects_s", 0.0)) + self._seconds
        self._study.update({"effects_s": round(spent, 3)})

    def line(self) -> str:
        """Return what was measured, in a line."""
        failed = f", {len(self.failed)} failed ({self.failed[0]})" if self.failed else ""
        return f"{self.count} effects measured in {format_duration(self._seconds)} of the workers' time{failed}"


def _images(effects: Effects) -> tuple[int, ...]:
    return effects.images, effects.calibration_images, effects.seed, effects.minimum_templates


def _notes(effects: Effects, network: Network) -> dict[str, Any]:
    """Return how far the rule is off, as plain JSON data: null where nothing could be left out."""
    model = EffectModel.fit(effects, network)
    errors = {"held_out_error": model.held_out_error, "held_out_factor": model.held_out_factor}
    return {"held_out": model.held_out, **{k: v if math.isfinite(v) else None for k, v in errors.items()}}


def _in_order(effects: Effects, planned: Sequence[_Pair]) -> Effects:
    """Return the planned effects, in the order of the plan: a study depends on nothing else that its store knows."""
    place = {pair: index for index, pair in enumerate(planned)}
    own = (effect for effect in effects.effects if (effect.block, effect.config) in place)
    return dataclasses.replace(
        effects, effects=tuple(sorted(own, key=lambda effect: place[effect.block, effect.config]))
    )


def _measure(run: _Run, missing: Sequence[_Pair], resources: Resources, console: Console) -> None:
    """Measure effects on workers, which are started anew for what is left if they die."""
    total, lines = len(missing), _LINES if _worth_workers(run, missing, resources) else 0
    with counting_bar(console, "effects", lines=lines) as show:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                for pair, answer in _answers(run, missing, resources, console):
                    run.keep(pair, answer)
                    show(run.count + len(run.failed), total)
                return
            except ray.exceptions.RayError as error:
                if isinstance(cause := getattr(error, "cause", None), OvertoneError):
                    raise cause from error
                missing = run.missing(missing)
                if attempt == _ATTEMPTS:
                    reason = str(error).strip().splitlines()[-1]
                    raise OvertoneError(f"cannot measure the effects of single blocks: {reason}") from error


def _answers(
    run: _Run, missing: Sequence[_Pair], resources: Resources, console: Console
) -> Iterator[tuple[_Pair, Effect | str]]:
    """Yield each form with its effect, or why there is none, as they come."""
    plan, workload = run.plan, run.workload
    options = {name: getattr(plan, name) for name in ("init", "saliency", "seed", "minimum_templates")}
    if _worth_workers(run, missing, resources):
        answers = _on_ray(workload, options, missing, resources, console)
    else:
        answers = _measured(workload, options, missing, "cpu", max(1, int(resources.cpus_per_trial)))
    with closing(answers):
        for answer in answers:
            if isinstance(answer, Effects):
                run.begin(answer)
            else:
                yield answer


def _worth_workers(run: _Run, missing: Sequence[_Pair], resources: Resources) -> bool:
    passes = len(missing) * effect_passes(run.workload.data)
    return bool(resources.gpus_per_trial) or passes * run.workload.network.cost(NetworkConfig()).macs > _HERE_MACS


def _on_ray(
    workload: Workload, options: Mapping[str, Any], missing: Sequence[_Pair], resources: Resources, console: Console
) -> Generator[_Answer]:
    """Yield the answers of the workers, each with a trial's resources."""
    needs = {"num_cpus": float(resources.cpus_per_trial), "num_gpus": float(resources.gpus_per_trial or 0)}
    task: Any = ray.remote(_worker).options(max_retries=0, num_returns="streaming", **needs)
    count = max(1, min(resources.concurrency or 1, len(missing) // _LEAST_SHARE))
    shared = ray.put(workload)
    streams: list[Any] = [task.remote(shared, options, missing[index::count]) for index in range(count)]
    notice = WaitingNotice(console, "a measurement", cpus=needs["num_cpus"], gpus=needs["num_gpus"])
    try:
        while streams:
            ready: list[Any] = ray.wait(streams, timeout=5, fetch_local=False)[0]
            if not ready:
                notice.waits()
            for stream in ready:
                answer = next(stream, None)
                if answer is None:
                    streams.remove(stream)
                else:
                    notice.ends()
                    yield ray.get(answer)
    finally:
        for stream in streams:
            ray.cancel(stream, force=True)


def _worker(workload: Workload, options: Mapping[str, Any], pairs: Sequence[_Pair]) -> Generator[_Answer]:
    resources = ray.get_runtime_context().get_assigned_resources()
    device = "cuda" if resources.get("GPU", 0) and torch.cuda.is_available() else "cpu"
    keep_freed_memory()
    yield from _measured(workload, options, pairs, device, max(1, int(resources.get("CPU", 1))))


def _measured(
    workload: Workload, options: Mapping[str, Any], pairs: Sequence[_Pair], device: str, threads: int
) -> Generator[_Answer]:
    """Yield what the uncompressed network measures, then each form with its effect, or with why there is none."""
    with num_threads(threads):
        meter = EffectMeter(workload.data, workload.baseline, workload.network, device=device, **options)
    yield meter.reference
    for pair in pairs:
        try:
            with num_threads(threads):
                effect = meter.measure(*pair)
        except OvertoneError as error:
            yield pair, str(error)
        else:
            yield pair, effect
