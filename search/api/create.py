"""Begin a study, or open one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layers.errors import UsageError
from results.ledger.ledger import Ledger
from results.ledger.store import Store
from search.api.study import Study
from search.study.amounts import Amount, parse_amount
from search.study.budget import Budget
from search.study.objects import Objects
from search.study.parsing import parse_granularity, read_space
from search.study.places import Places
from search.study.plan import DEFAULT_RECIPE, DEFAULT_STORE, StudyPlan
from search.study.study_ledger import StudyLedger
from trainers.data.spec import DataSpec
from trainers.training.recipe import RECIPES, TrainingRecipe

if TYPE_CHECKING:
    from torch import nn

    from trainers.data.objects import ImageObjects

__all__ = ["begin_study", "create_study", "hold_study", "load_study"]


def create_study(
    name: str,
    *,
    model: str | nn.Module,
    data: str | DataSpec | ImageObjects,
    weights: str | os.PathLike[str] | None = None,
    objectives: Sequence[str] = StudyPlan.objectives,
    max_size: Amount | None = None,
    max_flops: Amount | None = None,
    space: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    granularity: str = StudyPlan.granularity,
    minimum_templates: int = StudyPlan.minimum_templates,
    saliency: str = StudyPlan.saliency,
    recipe: str | TrainingRecipe = DEFAULT_RECIPE,
    init: str = StudyPlan.init,
    epochs: int = StudyPlan.epochs,
    seed: int = StudyPlan.seed,
    sampler: str = StudyPlan.sampler,
    miss_rate: float = StudyPlan.miss_rate,
    warm_start: Sequence[str] = StudyPlan.warm_start,
    runtime: str = StudyPlan.runtime,
    latency_threads: int | None = StudyPlan.latency_threads,
    keep: str = StudyPlan.keep,
    trials: int = StudyPlan.trials,
    store: str | os.PathLike[str] | Store = DEFAULT_STORE,
    progress: bool = True,
    **data_settings: Any,
) -> Study:
    """Return a new study, or the one of this name in the store if its settings are the same.

    `model` is the name of a network (as `overtone search --model`), or an `nn.Module`, whose own weights count without
    `weights`. `data` is the name of a set, a `DataSpec`, or images: `(images, labels)` as tensors, uint8 or float
    (n, C, H, W) and int (n,); a map-style dataset of such pairs; or a mapping of `train`, `val` and `test` to these.
    `data_settings` are the other fields of `DataSpec`, such as the `mean` and `std` that the weights were trained with:
    uint8 images need them; other sets have ImageNet's without, or torchvision's with torchvision's weights by name.
    `space` limits what knobs may be, as a mapping or a YAML file; sizes may be texts like "200kB". `trials` is how many
    `optimize` runs unless it is told otherwise. All others mean what `StudyPlan` says.

    Loads data and network and evaluates it once, on the CPU. Raises `UsageError` for settings that are not allowed, and
    for a study that exists with others.

    Example: `create_study("demo", model=net, data=(images, labels), max_size="200kB").optimize(100)`.
    """
    objects = Objects(model=None if isinstance(model, str) else model, data=_image_objects(data))
    model_name = model if isinstance(model, str) else _describe_module(model)
    if weights is None and objects.model is None:
        raise UsageError(f"weights (=None) must be given for the model {model_name!r}")
    plan = StudyPlan(
        model=model_name,
        weights=model_name if weights is None else os.fspath(weights),
        data=_data_spec(data, objects, data_settings),
        objectives=tuple(objectives),
        budget=Budget(
            max_size=None if max_size is None else parse_amount(max_size, name="max_size"),
            max_flops=None if max_flops is None else parse_amount(max_flops, name="max_flops"),
        ),
        space=space if isinstance(space, Mapping) else read_space(None if space is None else Path(space)),
        granularity=parse_granularity(granularity),
        minimum_templates=minimum_templates,
        saliency=saliency,
        recipe=_recipe(recipe, epochs),
        init=init,
        epochs=epochs,
        seed=seed,
        sampler=sampler,
        miss_rate=miss_rate,
        warm_start=tuple(warm_start),
        runtime=runtime,
        latency_threads=latency_threads,
        keep=keep,
        trials=trials,
    )
    return begin_study(_open(store), name, plan, objects, progress=progress)


def load_study(
    name: str,
    *,
    store: str | os.PathLike[str] | Store = DEFAULT_STORE,
    model: nn.Module | None = None,
    weights: str | os.PathLike[str] | None = None,
    data: str | DataSpec | ImageObjects | None = None,
) -> Study:
    """Return a study of the store.

    `model` and `data` are the objects that it was begun with, if it was; without them it can be asked all the same. If
    `weights` or a named set have moved since, `weights` and `data` say where they are: a file, and "imagefolder:DIR",
    the folder alone or a `DataSpec`. Their content must be the same; the record stays as it is. Raises `UsageError` if
    there is no such study.
    """
    place = data if isinstance(data, str | DataSpec) else None
    images = None if isinstance(data, str | DataSpec) else data
    places = Places(weights=None if weights is None else os.fspath(weights), data=place)
    return Study(_open(store), name, model=model, data=images, places=places)


def begin_study(
    ledger: Ledger, name: str, plan: StudyPlan, objects: Objects, *, progress: bool, sketch: bool = False
) -> Study:
    """Return the study of a plan, new or going on; errors are those of `create_study`.

    With `sketch` it is to be sketched first: settings that only trials depend on count for nothing.
    """
    from search.runner.launch import create_study as create
    from search.runner.progress import decoding_bar, make_console
    from search.runner.run_lock import hold
    from search.study.workload import Workload, prepared_data
    from trainers.data.description import describe_images

    if name not in ledger.studies():
        ledger.check_new_study(name)
    plan.check_runtime()
    plan = replace(plan, data=prepared_data(plan.data, plan.model, plan.weights)).located()
    study, console = StudyLedger(ledger, name), make_console(progress)
    opened = study.exists() and (sketch or not study.only_sketched())
    with nullcontext() if opened else hold(study, console):  # one that is only opened may run
        with decoding_bar(console) as on_progress:
            workload = Workload.load(plan, on_progress, objects)
        create(study, plan, workload, sketch=sketch)
    console.print(describe_images(plan.data, workload.data), highlight=False, markup=False, soft_wrap=True)
    return Study(ledger, name, model=objects.model, data=objects.data, workload=workload)


def hold_study(name: str, store: str) -> AbstractContextManager[object]:
    """Keep other processes from running a study while the block begins it and runs it.

    Raises `UsageError` if one does.
    """
    from search.runner.progress import make_console
    from search.runner.run_lock import hold

    return hold(StudyLedger(_open(store), name), make_console())


def _open(store: str | os.PathLike[str] | Store) -> Ledger:
    return Ledger(store if isinstance(store, Store) else Store(store))


def _image_objects(data: str | DataSpec | ImageObjects) -> ImageObjects | None:
    return None if isinstance(data, str | DataSpec) else data


def _describe_module(model: nn.Module) -> str:
    from torch import nn

    from spaces.models import describe_module

    if not isinstance(model, nn.Module):
        raise UsageError(f"model (={model!r}) must be a network's name or a torch.nn.Module")
    return describe_module(model)


def _data_spec(data: str | DataSpec | ImageObjects, objects: Objects, settings: Mapping[str, Any]) -> DataSpec:
    """Return the data that are meant, with these settings."""
    allowed = [field.name for field in fields(DataSpec) if field.name != "name"]
    for name in settings:
        if name not in allowed:
            raise UsageError(f"setting (={name!r}) must be one of create_study's, or of {', '.join(allowed)}")
    if isinstance(data, DataSpec):
        return replace(data, **settings)
    if isinstance(data, str):
        return DataSpec(name=data, **settings)
    from trainers.data.objects import describe_objects

    return DataSpec(name=describe_objects(data), **settings)


def _recipe(recipe: str | TrainingRecipe, epochs: int) -> TrainingRecipe:
    if isinstance(recipe, str) and recipe not in RECIPES:
        raise UsageError(f"recipe (={recipe!r}) must be one of {', '.join(RECIPES)}, or a TrainingRecipe")
    chosen = RECIPES[recipe] if isinstance(recipe, str) else recipe
    chosen.check_length(epochs)
    return chosen
