"""`overtone inspect`: what a network is made of and what a search could make of it, before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch

from search.commands import options
from search.commands.display import out_console, print_json
from search.commands.networks import LoadedNetwork, load_network
from search.commands.option_groups import ImageOptions, RecipeOptions, SpaceOptions, with_option_groups
from search.commands.survey import survey
from search.commands.survey_table import show_survey
from search.study.plan import StudyPlan
from search.study.workload import make_space
from spaces import Network, Space
from spaces.global_pruning import has_global_rate, resolve_global_rates
from trainers.estimate import TrialEstimate, estimate_trial
from trainers.runtime.device import default_device, keep_freed_memory, parse_device
from trainers.start.saliency import filter_saliency
from trainers.training.recipe import TrainingRecipe

__all__ = ["inspect"]


@with_option_groups
def inspect(
    model: options.Model,
    images: ImageOptions,
    space: SpaceOptions,
    recipe: RecipeOptions,
    weights: options.OptionalWeights = None,
    device: Annotated[
        str, options.option(options.TRAINING, "Device of a trial: cpu, cuda or cuda:1.")
    ] = default_device(),
    as_json: options.AsJson = False,
) -> None:
    """Show a network's blocks, their choices, and the sizes in reach.

    These are the sizes and FLOPs of the space that `overtone search` searches with the same options. With --dataset
    it also estimates the time and memory of a trial: it times a few training steps of a copy of the network on
    random images, and trains nothing else.

    Example: overtone inspect --model resnet20 --dataset cifar10 --granularity layer
    """
    settings = recipe.training_recipe()
    plan = StudyPlan(model=model, weights=weights or "", epochs=recipe.epochs, recipe=settings, **space.plan_fields())
    torch_device = parse_device(device)
    loaded = load_network(model, images, weights)
    search_space = _search_space(plan, loaded)
    trial = None if loaded.data is None else _estimate(loaded, settings, recipe.epochs, torch_device)
    train_images = 0 if loaded.data is None else len(loaded.data.train)
    result = survey(search_space, model=model, train_images=train_images, epochs=recipe.epochs, trial=trial)
    if as_json:
        print_json(result.to_json())
    else:
        size = "x".join(map(str, loaded.image))
        show_survey(out_console, result, f"{model} on {size} images, {loaded.classes} classes")


def _search_space(plan: StudyPlan, loaded: LoadedNetwork) -> Space:
    """Return the space of the plan; its global pruning rates are resolved on the network's weights."""
    network = Network.from_module(loaded.module, loaded.image, plan.granularity)
    if has_global_rate(plan.space):
        saliency = filter_saliency(plan.saliency, loaded.module, loaded.data, seed=plan.seed)
        limits = resolve_global_rates(plan.space, network, saliency, plan.minimum_templates)
        plan = replace(plan, space=limits)
    return make_space(plan, network)


def _estimate(loaded: LoadedNetwork, recipe: TrainingRecipe, epochs: int, device: torch.device) -> TrialEstimate:
    """Time a few training steps, after telling the allocator what the processes of trials tell it."""
    assert loaded.data is not None
    keep_freed_memory()
    return estimate_trial(
        loaded.module,
        loaded.image,
        recipe=recipe,
        epochs=epochs,
        train_images=len(loaded.data.train),
        val_images=len(loaded.data.val),
        device=device,
        streamed=not isinstance(loaded.data.train.images, torch.Tensor),
    )
