"""`overtone sketch`: the front in minutes, before any training."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from search.commands import options
from search.commands.display import out_console, print_json, print_line
from search.commands.option_groups import DataOptions, ResourceOptions, SpaceOptions, with_option_groups
from search.study.amounts import parse_amount
from search.study.budget import Budget
from search.study.parsing import parse_granularity, read_space
from search.study.plan import DEFAULT_POINTS, DEFAULT_STORE, StudyPlan

if TYPE_CHECKING:
    import pandas as pd

    from search.api.study import Study

__all__ = ["sketch"]


@with_option_groups
def sketch(
    model: options.Model,
    weights: options.Weights,
    study: options.Study,
    data: DataOptions,
    space: SpaceOptions,
    resources: ResourceOptions,
    points: Annotated[
        int, options.option(options.SEARCH, "Networks to build and measure at most.", min=1)
    ] = DEFAULT_POINTS,
    init: options.Init = StudyPlan.init,
    objective: options.Objectives = None,
    max_size: options.MaxSize = None,
    max_flops: options.MaxFlops = None,
    runtime: options.Runtime = StudyPlan.runtime,
    latency_threads: options.LatencyThreads = StudyPlan.latency_threads,
    seed: options.Seed = StudyPlan.seed,
    store: options.Store = DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Predict the front without training, and measure it.

    It measures what compressing each block alone does, solves for the best networks, and builds, calibrates and
    measures a few. `overtone search` with the same settings goes on from them. After Ctrl-C the same command continues.

    Example: overtone sketch --model resnet8 --weights resnet8.safetensors --dataset digits --study demo --points 12
    """
    from results.ledger.ledger import Ledger
    from results.ledger.store import Store
    from search.api.create import begin_study, hold_study
    from search.api.study import Interrupted
    from search.study.objects import NO_OBJECTS

    plan = StudyPlan(
        model=model,
        weights=weights,
        data=data.data_spec(),
        objectives=tuple(objective or StudyPlan.objectives),
        budget=Budget(
            max_size=None if max_size is None else parse_amount(max_size, name="max_size"),
            max_flops=None if max_flops is None else parse_amount(max_flops, name="max_flops"),
        ),
        space=read_space(space.space),
        granularity=parse_granularity(space.granularity),
        minimum_templates=space.minimum_templates,
        saliency=space.saliency,
        init=init,
        runtime=runtime,
        latency_threads=latency_threads,
        seed=seed,
    )
    asked = resources.resources()
    with hold_study(study, store):
        opened = begin_study(Ledger(Store(store)), study, plan, NO_OBJECTS, progress=True, sketch=True)
        try:
            rows, stopped = opened.sketch(points, resources=asked), False
        except Interrupted as interrupted:
            rows, stopped = interrupted.result, True
    _show(opened, rows, stopped, as_json)
    if stopped:
        raise typer.Exit(1)


def _show(study: Study, rows: pd.DataFrame, stopped: bool, as_json: bool) -> None:
    from results.formatting import format_metrics
    from results.objectives import init_name
    from search.commands.trial_table import show_trials

    names = ["trial", init_name(study.score_name), "predicted_loss_increase", "size_bytes", "flops", "blocks"]
    if as_json:
        print_json({"study": study.name, "done": not stopped, "sketches": rows[names].to_dict("records")})
        return
    title = f"{study.name}: {len(rows)} networks, calibrated and never trained"
    show_trials(out_console(), rows, title, study.score_name, names)
    print_line(f"uncompressed: {format_metrics(study.record()['uncompressed'])}")
    print_line("stopped; the same command continues" if stopped else _next_line(study.name, study.ledger.store.label))


def _next_line(study: str, store: str) -> str:
    at = "" if store == DEFAULT_STORE else f" --store {shlex.quote(store)}"
    return (
        f"train what they lead to with: overtone resume --study {study}{at}, or with overtone search and other epochs"
    )
