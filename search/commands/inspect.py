"""`overtone inspect`: what a network is made of and what a search could make of it, before anything is trained."""

from __future__ import annotations

from search.commands import options
from search.commands.display import out_console, print_json
from search.commands.option_groups import ImageOptions, RecipeOptions, SpaceOptions, with_option_groups
from search.study.parsing import parse_granularity, read_space
from search.study.plan import StudyPlan

__all__ = ["inspect"]


@with_option_groups
def inspect(
    model: options.Model,
    images: ImageOptions,
    space: SpaceOptions,
    recipe: RecipeOptions,
    weights: options.OptionalWeights = None,
    runtime: options.InspectRuntime = None,
    latency_threads: options.LatencyThreads = StudyPlan.latency_threads,
    device: options.Device = None,
    as_json: options.AsJson = False,
) -> None:
    """Show a network's blocks, their choices, and the sizes in reach.

    These are the sizes and FLOPs of the space that `overtone search` searches with the same options. With --dataset
    it also estimates the time and memory of a trial: it times a few training steps of a copy of the network on
    random images, and trains nothing else. With --runtime it takes the uncompressed network's latency as a trial would.

    Example: overtone inspect --model resnet20 --dataset cifar10 --granularity layer
    """
    plan = StudyPlan(
        model=model,
        weights=weights or "",
        recipe=recipe.training_recipe(),
        epochs=recipe.epochs,
        space=read_space(space.space),
        granularity=parse_granularity(space.granularity),
        minimum_templates=space.minimum_templates,
        saliency=space.saliency,
        objectives=StudyPlan.objectives if runtime is None else (*StudyPlan.objectives, "latency_ms"),
        runtime=runtime or StudyPlan.runtime,
        latency_threads=latency_threads,
    )
    plan.check_runtime()
    from search.api.survey import survey_network
    from search.commands.survey_table import show_survey
    from trainers.runtime.device import default_device, parse_device

    place = parse_device(device or default_device())
    loaded = images.load(model, weights)
    result = survey_network(loaded, plan, device=place)
    if as_json:
        print_json({"images": loaded.images_json(), **result.to_json()})
    else:
        size = "x".join(map(str, loaded.image))
        title = f"{model} on {size} images, {loaded.classes} classes"
        show_survey(out_console(), result, f"{title}\n{loaded.images}" if loaded.images else title)
