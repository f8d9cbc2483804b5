"""`overtone plot`: pictures of a study's front and effects, of a layer's filters, and of pruning rates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from search.commands import options
from search.commands.display import err_console, print_answer
from search.commands.help_panels import CommandWithPanels, GroupOfCommands
from search.commands.option_groups import ImageOptions, with_option_groups
from search.study.parsing import parse_granularity
from search.study.plan import DEFAULT_STORE, StudyPlan
from trainers.start.choices import SALIENCIES

if TYPE_CHECKING:
    from search.api.networks import LoadedNetwork

__all__ = ["plot_app"]


def front(
    study: options.Study,
    out: options.Picture,
    store: options.Store = DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Draw a study's front.

    The picture shows the score against size and against compute.

    Example: overtone plot front --study demo --out front.svg
    """
    from search.api.create import load_study

    load_study(study, store=store).plot_front(out)
    print_answer({"out": str(out), "study": study}, str(out), as_json)


def effects(
    study: options.Study,
    out: options.Picture,
    store: options.Store = DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Draw what compressing each block alone costs.

    The picture shows the rise of the loss before any training, block by block, as a search has measured it.

    Example: overtone plot effects --study demo --out effects.svg
    """
    from search.api.create import load_study

    load_study(study, store=store).plot_effects(out)
    print_answer({"out": str(out), "study": study}, str(out), as_json)


@with_option_groups
def filters(
    model: options.Model,
    layer: options.Layer,
    images: ImageOptions,
    out: options.Picture,
    weights: options.OptionalWeights = None,
    as_json: options.AsJson = False,
) -> None:
    """Draw a layer's filters beside their truncated series.

    Each row is a filter, then its cosine and Chebyshev series at falling harmonics with the L2 error of each.

    Example: overtone plot filters --model resnet20 --layer layer1.0.conv1 --out filters.png
    """
    from results.figures.series import get_conv, mean_errors, plot_filters

    loaded = images.load(model, weights)
    conv, title = get_conv(loaded.module, layer), loaded.title(layer)
    plot_filters(conv, out, name=title)
    errors = mean_errors(conv, name=title)
    _warn_if_random(loaded)
    print_answer({"out": str(out), "layer": layer, "errors": errors}, str(out), as_json)


@with_option_groups
def rebuilt(
    model: options.Model,
    layer: options.Layer,
    pruning_rate: options.PruningRate,
    images: ImageOptions,
    out: options.Picture,
    weights: options.OptionalWeights = None,
    as_json: options.AsJson = False,
) -> None:
    """Draw a layer's filters rebuilt from templates.

    Each row is a pruned filter, then what each family of transforms makes of a template, then plain pruning.

    Example: overtone plot rebuilt --model resnet20 --layer layer1.0.conv1 --pruning-rate 0.75 --out rebuilt.png
    """
    from results.figures.series import get_conv
    from results.figures.templates import plot_reconstructions, reconstruction_errors

    loaded = images.load(model, weights)
    conv, title = get_conv(loaded.module, layer), loaded.title(layer)
    plot_reconstructions(conv, out, pruning_rate, name=title)
    errors = reconstruction_errors(conv, pruning_rate, name=title)
    _warn_if_random(loaded)
    print_answer({"out": str(out), "layer": layer, "errors": errors}, str(out), as_json)


@with_option_groups
def rates(
    model: options.Model,
    pruning_rate: options.PruningRate,
    images: ImageOptions,
    out: options.Picture,
    weights: options.OptionalWeights = None,
    granularity: options.Granularity = StudyPlan.granularity,
    minimum_templates: options.MinimumTemplates = StudyPlan.minimum_templates,
    saliency: Annotated[
        list[str] | None,
        options.option(
            options.SPACE,
            f"Ranking of filters to draw the rates of: {' or '.join(SALIENCIES)}; repeat it for both. Default: "
            "magnitude, with --dataset both.",
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Draw each block's pruning rate under one threshold.

    The threshold prunes this share of all the network's filters, least salient first.

    Example: overtone plot rates --model resnet20 --pruning-rate 0.5 --out rates.png
    """
    from results.figures.pruning_rates import plot_pruning_rates

    loaded = images.load(model, weights)
    if loaded.images:
        err_console().print(loaded.images, highlight=False, markup=False, soft_wrap=True)
    by_saliency = loaded.pruning_rates(
        pruning_rate, parse_granularity(granularity), minimum_templates, tuple(saliency or ())
    )
    plot_pruning_rates(by_saliency, out, title=loaded.title(), rate=pruning_rate)
    print_answer({"out": str(out), "pruning_rate": pruning_rate, "rates": by_saliency}, str(out), as_json)


def _warn_if_random(loaded: LoadedNetwork) -> None:
    if not loaded.trained:
        err_console().print("no weights were given: these are the filters of a random start", highlight=False)


plot_app = typer.Typer(
    cls=GroupOfCommands,
    help="Draw a front, effects, a layer's filters, or pruning rates.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
for _command in (front, effects, filters, rebuilt, rates):
    plot_app.command(cls=CommandWithPanels)(_command)
