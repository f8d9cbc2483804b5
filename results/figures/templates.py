"""A layer's filters beside their reconstructions from templates, and beside plain pruning: before any training.

Miles & Mikolajczyk, figure 3: original kernels, those rebuilt by each family of transforms, and pruned ones. Templates
are the filters of largest magnitude; transforms are those that come nearest to the filter in the space of the weights.
"""

import copy
import os
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from layers import LayerForm, UsageError
from layers.compress import compress_layer
from layers.conv import CompressedConv2d
from layers.form import Assignment
from layers.templates.count import template_count
from layers.templates.transforms import TRANSFORMS, parameter_shape
from results.figures.grid import MINUS, FilterGrid, Panel, render_grid
from results.figures.saving import check_picture_path, save_figure
from results.figures.series import Convolution, describe_filters, filter_weights, row_labels, select_filters

__all__ = ["plot_reconstructions", "reconstruction_errors"]


def reconstruction_errors(layer: Convolution, pruning_rate: float, *, name: str) -> dict[str, float]:
    """Return ||W - W'|| / ||W|| of all pruned filters of a layer together, by family of transforms.

    `name` is what errors call the layer. Raises the errors of `plot_reconstructions`.
    """
    taps = filter_weights(layer, name)
    pruned, rebuilt = _rebuild(layer, pruning_rate)
    return {transform: _total_error(taps, filters, pruned) for transform, filters in rebuilt.items()}


def plot_reconstructions(
    layer: Convolution, path: str | os.PathLike[str], pruning_rate: float, *, name: str, count: int = 6
) -> Path:
    """Draw up to `count` pruned filters of the layer called `name`, rebuilt at a pruning rate; return the file's path.

    Those drawn lie at even quantiles of the relative error with gains, smallest first. Raises `UsageError` for a rate
    outside [0, 1) or one at which nothing is pruned, and otherwise as `plot_filters` does.
    """
    path = check_picture_path(path)
    taps = filter_weights(layer, name)
    pruned, rebuilt = _rebuild(layer, pruning_rate)
    outputs = pruned.nonzero().flatten().tolist()
    errors = (taps - rebuilt["scalar"]).flatten(-2).norm(dim=-1)
    selected = [(outputs[n], c) for n, c in select_filters(taps[pruned], errors[pruned], count)]
    kernel = (taps.shape[2], taps.shape[3])
    panel = Panel(
        title=f"Rebuilt from {len(taps) - len(outputs):,} templates of {len(taps):,} filters",
        images=torch.stack([torch.stack([rebuilt[one][n, c] for one in TRANSFORMS]) for n, c in selected]),
        errors=[_total_error(taps, rebuilt[one], pruned) for one in TRANSFORMS],
    )
    grid = FilterGrid(
        name=name,
        about=describe_filters(taps),
        filters=torch.stack([taps[n, c] for n, c in selected]),
        labels=row_labels(taps, selected),
        header=("transform", "values an output", f"error of all {len(outputs) * taps.shape[1]:,}"),
        columns=[
            ("original", str(taps[0].numel())),
            *((transform, str(prod(parameter_shape(transform, kernel)))) for transform in TRANSFORMS),
        ],
        panels=[panel],
        caption=_caption(pruning_rate),
    )
    return save_figure(render_grid(grid), path, salt=name)


@torch.no_grad()
def _rebuild(layer: Convolution, pruning_rate: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Return which filters are pruned, bool (N,), and the layer's filters rebuilt by each family of transforms.

    The filters are float64 (N, C / groups, K_y, K_x), templates among them.
    """
    count = template_count(pruning_rate, layer.out_channels, 1)
    if count == layer.out_channels:
        raise UsageError(
            f"pruning_rate (={pruning_rate}) must be high enough to prune at least one of the {count} filters"
        )
    exact = copy.deepcopy(layer).cpu().double()
    rebuilt = dict[str, Tensor]()
    for transform in TRANSFORMS:
        assignment: Assignment | None = None if transform == "zero" or count == 1 else "residual"
        compressed = compress_layer(exact, LayerForm(templates=count, transform=transform, assignment=assignment))
        assert isinstance(compressed, CompressedConv2d)
        assert compressed.template_mask is not None
        rebuilt[transform] = compressed.filters()
        pruned = ~compressed.template_mask
    return pruned, rebuilt


def _total_error(taps: Tensor, filters: Tensor, pruned: Tensor) -> float:
    """Return the relative error of all pruned filters together: a mean of shares would count filters of no weight."""
    norm = taps[pruned].norm()
    return float((taps - filters)[pruned].norm() / norm) if norm else 0.0


def _caption(pruning_rate: float) -> str:
    return (
        f"Pruning rate {pruning_rate:g}. Above each image: L2 error ‖W {MINUS} W\u2032‖₂ of the rebuilt filter, and "
        "its share of ‖W‖₂. Filters of largest magnitude are the templates, and each transform comes as near to the "
        "filter as it can, from the best template, in the space of the weights and before any training; compare figure "
        "3 of Miles & Mikolajczyk. Zero is plain pruning. The error of all is that of the pruned filters together, as "
        "a share of their norm. Rows: pruned filters at even quantiles of the share with gains (scalar), the least at "
        "the top. One color scale a row: red above 0, blue below."
    )
