"""`overtone plot`: pictures of a study's front, of a layer's filters, and of pruning rates.

matplotlib is slow to import, so only the commands that draw import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from results.ledger.ledger import Ledger
from results.ledger.store import Store as OpenStore
from search.commands import options
from search.commands.display import err_console, print_answer
from search.commands.help_panels import CommandWithPanels
from search.commands.networks import LoadedNetwork, load_network
from search.commands.option_groups import ImageOptions, with_option_groups
from search.commands.parsing import parse_granularity
from search.study.plan import StudyPlan
from spaces import Network
from spaces.global_pruning import global_rates
from trainers.start.choices import SALIENCIES
from trainers.start.saliency import filter_saliency

__all__ = ["plot_app"]


def front(
    study: options.Study,
    out: options.Picture,
    store: options.Store = options.DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Draw a study's front.

    The picture shows the score against size and against compute.

    Example: overtone plot front --study demo --out front.svg
    """
    from results.report.plot import plot_front

    plot_front(Ledger(OpenStore(store)), study, out)
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

    loaded = load_network(model, images, weights)
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

    loaded = load_network(model, images, weights)
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

    loaded = load_network(model, images, weights)
    network = Network.from_module(loaded.module, loaded.image, parse_granularity(granularity))
    kinds = tuple(saliency or (SALIENCIES if loaded.data is not None else SALIENCIES[:1]))
    by_saliency: Mapping[str, Mapping[str, float]] = {
        kind: global_rates(
            network,
            filter_saliency(kind, loaded.module, loaded.data, seed=StudyPlan.seed),
            pruning_rate,
            minimum_templates,
        )
        for kind in kinds
    }
    plot_pruning_rates(by_saliency, out, title=loaded.title(), rate=pruning_rate)
    print_answer({"out": str(out), "pruning_rate": pruning_rate, "rates": by_saliency}, str(out), as_json)


def _warn_if_random(loaded: LoadedNetwork) -> None:
    if not loaded.trained:
        err_console.print("no weights were given: these are the filters of a random start", highlight=False)


plot_app = typer.Typer(
    help="Draw a front, a layer's filters, or pruning rates.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
for _command in (front, filters, rebuilt, rates):
    plot_app.command(cls=CommandWithPanels)(_command)
