"""Commands that run a study's trials, and show how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from search.commands import options
from search.commands.display import (
    confirm_line,
    err_console,
    out_console,
    print_answer,
    print_json,
    print_line,
    search_line,
    status_line,
)
from search.commands.option_groups import (
    BoardOptions,
    DataOptions,
    RecipeOptions,
    ResourceOptions,
    SpaceOptions,
    with_option_groups,
)
from search.study.plan import DEFAULT_SEEDS, DEFAULT_STORE, StudyPlan

if TYPE_CHECKING:
    from search.api.study import Study
    from search.runner.confirm import RepeatResult
    from search.runner.launch import SearchResult

_Result = TypeVar("_Result", "SearchResult", "RepeatResult")

__all__ = ["confirm", "print_search_result", "resume", "search", "status"]


@with_option_groups
def search(
    model: options.Model,
    weights: options.Weights,
    study: options.Study,
    data: DataOptions,
    space: SpaceOptions,
    recipe: RecipeOptions,
    resources: ResourceOptions,
    boards: BoardOptions,
    init: options.Init = StudyPlan.init,
    objective: options.Objectives = None,
    max_size: options.MaxSize = None,
    max_flops: options.MaxFlops = None,
    trials: options.Trials = StudyPlan.trials,
    sampler: options.Sampler = StudyPlan.sampler,
    miss_rate: options.MissRate = StudyPlan.miss_rate,
    warm_start: options.WarmStart = None,
    runtime: options.Runtime = StudyPlan.runtime,
    latency_threads: options.LatencyThreads = StudyPlan.latency_threads,
    keep: options.Keep = StudyPlan.keep,
    seed: options.Seed = StudyPlan.seed,
    store: options.Store = DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Search the compressed forms of a network on Ray.

    Every trial and the models of the front are kept in the store. After Ctrl-C or a crash, the same command or
    `overtone resume` continues.

    Example: overtone search --model resnet8 --weights resnet8.safetensors --dataset digits --study demo --trials 24
    """
    from search.api.create import create_study, hold_study

    asked, dashboards = resources.resources(), boards.dashboards()
    settings = recipe.training_recipe()
    with hold_study(study, store):
        opened = create_study(
            study,
            model=model,
            weights=weights,
            data=data.data_spec(),
            objectives=objective or StudyPlan.objectives,
            max_size=max_size,
            max_flops=max_flops,
            space=space.space,
            granularity=space.granularity,
            minimum_templates=space.minimum_templates,
            saliency=space.saliency,
            recipe=settings,
            epochs=recipe.epochs,
            init=init,
            seed=seed,
            sampler=sampler,
            miss_rate=miss_rate,
            warm_start=warm_start or (),
            runtime=runtime,
            latency_threads=latency_threads,
            keep=keep,
            trials=trials,
            store=store,
        )
        result = _result_of(lambda: opened.optimize(trials, resources=asked, dashboards=dashboards))
    print_search_result(opened, result, as_json)


@with_option_groups
def resume(
    study: options.Study,
    resources: ResourceOptions,
    boards: BoardOptions,
    more: Annotated[
        int | None,
        options.option(
            options.STUDY, "Run this many trials more than asked for so far. Default: only those still missing."
        ),
    ] = None,
    weights: options.MovedWeights = None,
    data: options.MovedData = None,
    store: options.Store = DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Continue a study that stopped, or add trials to it.

    Example: overtone resume --study demo --more 12
    """
    from search.api.create import load_study

    opened = load_study(study, store=store, weights=weights, data=data)
    asked, dashboards = resources.resources(), boards.dashboards()
    result = _result_of(lambda: opened.optimize(more=more, resources=asked, dashboards=dashboards))
    print_search_result(opened, result, as_json)


@with_option_groups
def confirm(
    study: options.Study,
    resources: ResourceOptions,
    seeds: Annotated[int, options.option(options.TRIALS, "Further seeds to run each trial with.")] = DEFAULT_SEEDS,
    pick: Annotated[
        str,
        options.option(
            options.TRIALS,
            "front (all of it), best (highest score), knee (of the front), or a trial by its id, the id's first 6 "
            "characters or more, or its number.",
        ),
    ] = "front",
    where: options.Where = None,
    weights: options.MovedWeights = None,
    data: options.MovedData = None,
    store: options.Store = DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Run members of the front again with other seeds.

    This gives their scores an interval. After Ctrl-C or a crash the same command continues. The search itself is
    not touched.

    Example: overtone confirm --study demo --seeds 3 --where "size_bytes < 20000"
    """
    from results.analysis.confidence import study_confidence
    from search.api.create import load_study

    opened = load_study(study, store=store, weights=weights, data=data)
    asked = resources.resources()
    result: RepeatResult = _result_of(lambda: opened.confirm(seeds, pick=pick, where=where, resources=asked))
    if as_json:
        print_json({**asdict(result), "study": study, "front": study_confidence(opened.ledger, study).to_pylist()})
    else:
        _show_front(opened, f"{study}: the front over its seeds")
        print_line(confirm_line(study, result))
    if result.done < result.wanted:
        raise typer.Exit(1)


def status(study: options.Study, store: options.Store = DEFAULT_STORE, as_json: options.AsJson = False) -> None:
    """Show how far a study is.

    It counts trials by their state, and shows front, hypervolume and time left, from any terminal.

    Example: overtone status --study demo
    """
    from search.api.create import load_study

    answer = load_study(study, store=store).status()
    print_answer(answer, status_line(answer), as_json)


def print_search_result(study: Study, result: SearchResult, as_json: bool) -> None:
    """Print the front and the command that continues the study.

    Raises `typer.Exit` with 1 for a study that was stopped early, and for one of which every trial failed.
    """
    status = study.status()
    if as_json:
        answer = {**asdict(result), "study": study.name, "front": status["front"]}
        print_json({**answer, "hypervolume": status["hypervolume"]})
    else:
        _show_front(study, f"{study.name}: the front of {result.done} trials")
        line = search_line(study.name, study.ledger.store.label, result)
        print_line(f"hypervolume {status['hypervolume']:.4f}; {line}")
    failed = status["failed"]
    if failed:
        err_console().print(f"{failed} of {result.done} trials failed", highlight=False)
    if (failed and failed == result.done) or (result.done < result.wanted and not result.exhausted):
        raise typer.Exit(1)


def _show_front(study: Study, title: str) -> None:
    from search.commands.trial_table import show_trials

    show_trials(out_console(), study.front(), title, study.score_name)


def _result_of(run: Callable[[], _Result]) -> _Result:
    """Return how a run ended, by itself or by Ctrl-C."""
    from search.api.study import Interrupted

    try:
        return run()
    except Interrupted as stopped:
        return stopped.result
