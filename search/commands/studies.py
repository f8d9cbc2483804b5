"""Commands that run a study's trials, and show how far it is."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from results.analysis.confidence import study_confidence
from results.analysis.summary import confidence_by_trial, summarize
from results.ledger.ledger import Ledger
from results.ledger.store import Store as OpenStore
from results.queries.query import query as query_trials
from results.schema import TrialStatus
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
from search.commands.parsing import parse_amount
from search.commands.trial_table import show_trials
from search.runner.run_lock import is_running
from search.study.budget import Budget
from search.study.plan import StudyPlan

if TYPE_CHECKING:
    from search.runner.launch import SearchResult

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
    keep: options.Keep = StudyPlan.keep,
    seed: options.Seed = StudyPlan.seed,
    store: options.Store = options.DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Search the compressed forms of a network on Ray.

    Every trial and the models of the front are kept in the store. After Ctrl-C or a crash, the same command or
    `overtone resume` continues.

    Example: overtone search --model resnet8 --weights resnet8.safetensors --dataset digits --study demo --trials 24
    """
    from search.runner.launch import start_study

    plan = StudyPlan(
        model=model,
        weights=weights,
        data=data.data_spec(),
        objectives=tuple(objective or StudyPlan.objectives),
        budget=Budget(
            max_size=None if max_size is None else parse_amount(max_size, name="max_size"),
            max_flops=None if max_flops is None else parse_amount(max_flops, name="max_flops"),
        ),
        **space.plan_fields(),
        recipe=recipe.training_recipe(),
        epochs=recipe.epochs,
        init=init,
        seed=seed,
        sampler=sampler,
        miss_rate=miss_rate,
        warm_start=tuple(warm_start or ()),
        keep=keep,
        trials=trials,
    )
    ledger = Ledger(OpenStore(store))
    result = start_study(ledger, study, plan, resources.resources(), err_console, boards.dashboards())
    print_search_result(ledger, study, result, as_json)


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
    store: options.Store = options.DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Continue a study that stopped, or add trials to it.

    Example: overtone resume --study demo --more 12
    """
    from search.runner.launch import resume_study

    ledger = Ledger(OpenStore(store))
    result = resume_study(ledger, study, more, resources.resources(), err_console, boards.dashboards())
    print_search_result(ledger, study, result, as_json)


@with_option_groups
def confirm(
    study: options.Study,
    resources: ResourceOptions,
    seeds: Annotated[int, options.option(options.TRIALS, "Further seeds to run each trial with.")] = 3,
    pick: Annotated[
        str,
        options.option(
            options.TRIALS, "front (all of it), best (highest score), knee (of the front), or the id of a trial."
        ),
    ] = "front",
    where: options.Where = None,
    store: options.Store = options.DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Run members of the front again with other seeds.

    This gives their scores an interval. After Ctrl-C or a crash the same command continues. The search itself is
    not touched.

    Example: overtone confirm --study demo --seeds 3 --where "size_bytes < 20000"
    """
    from search.runner.confirm import confirm_trials

    ledger = Ledger(OpenStore(store))
    result = confirm_trials(
        ledger, study, pick, where=where, seeds=seeds, resources=resources.resources(), console=err_console
    )
    if as_json:
        print_json({**asdict(result), "study": study, "front": study_confidence(ledger, study).to_pylist()})
    else:
        _show_front(ledger, study, f"{study}: the front over its seeds")
        print_line(confirm_line(study, result))
    if result.done < result.wanted:
        raise typer.Exit(1)


def status(study: options.Study, store: options.Store = options.DEFAULT_STORE, as_json: options.AsJson = False) -> None:
    """Show how far a study is.

    It counts trials by their state, and shows front, hypervolume and time left, from any terminal.

    Example: overtone status --study demo
    """
    ledger = Ledger(OpenStore(store))
    summary, progress = summarize(ledger, study), ledger.read_progress(study) or {}
    statuses = summary.trials.column("status").to_pylist()
    running = is_running(progress)
    state = "running" if running else "finished" if len(statuses) >= summary.record["trials"] else "stopped"
    answer = {
        "study": study,
        "state": state,
        "wanted": summary.record["trials"],
        **{name: statuses.count(name) for name in ("finished", "failed", "pruned")},
        "running": progress.get("running", 0) if running else 0,
        "front": summary.front.num_rows,
        "confirmed": sum(row["seeds"] > 1 for row in confidence_by_trial(ledger, summary).values()),
        "hypervolume": summary.hypervolume,
        "seconds_left": progress.get("seconds_left") if running else None,
    }
    print_answer(answer, status_line(answer), as_json)


def print_search_result(ledger: Ledger, study: str, result: SearchResult, as_json: bool) -> None:
    """Print the front and the command that continues the study.

    Raises `typer.Exit` with 1 for a study that was stopped early, and for one of which every trial failed.
    """
    summary = summarize(ledger, study)
    if as_json:
        answer = {**asdict(result), "study": study, "front": summary.front.num_rows}
        print_json({**answer, "hypervolume": summary.hypervolume})
    else:
        _show_front(ledger, study, f"{study}: the front of {result.done} trials")
        print_line(f"hypervolume {summary.hypervolume:.4f}; {search_line(study, ledger.store.label, result)}")
    failed = summary.trials.column("status").to_pylist().count(TrialStatus.FAILED)
    if failed:
        err_console.print(f"{failed} of {result.done} trials failed", highlight=False)
    if (failed and failed == result.done) or (result.done < result.wanted and not result.exhausted):
        raise typer.Exit(1)


def _show_front(ledger: Ledger, study: str, title: str) -> None:
    show_trials(out_console, query_trials(ledger, study, front=True), title, ledger.score_name(study))
