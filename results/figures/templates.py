"""A layer's filters beside what is rebuilt of them from templates, and beside plain pruning: before any training.

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
from layers.templates.rebuild import template_count
from layers.templates.transforms import TRANSFORMS, parameter_shape
from results.figures.grid import MINUS, FilterGrid, Panel, render_grid
from results.figures.series import (
    Convolution,
    describe_filters,
    filter_weights,
    picture_path,
    row_labels,
    select_filters,
)
from results.ledger.store import Store

__all__ = ["plot_reconstructions", "reconstruction_errors"]


def reconstruction_errors(layer: Convolution, rate: float, *, name: str) -> dict[str, float]:
    """||W - W'|| / ||W|| of all pruned filters of the layer called `name` together, by family of transforms."""
    taps, (pruned, found) = filter_weights(layer, name), _rebuilt(layer, rate)
    return {transform: _share(taps, pruned, filters) for transform, filters in found.items()}


def plot_reconstructions(
    layer: Convolution, path: str | os.PathLike[str], rate: float, *, name: str, count: int = 6
) -> Path:
    """Draws up to `count` pruned filters of the layer, rebuilt at a pruning rate, into a `.png` or `.svg` file.

    Those drawn lie at even quantiles of the relative error with gains, from the best served to the worst. Raises
    `UsageError` for a rate outside [0, 1) or one at which nothing is pruned, and otherwise as `plot_filters` does.
    """
    path, taps = picture_path(path, count), filter_weights(layer, name)
    pruned, found = _rebuilt(layer, rate)
    outputs = pruned.nonzero().flatten()
    chosen = [
        (int(outputs[n]), c) for n, c in select_filters(taps[pruned], _errors(taps, found["scalar"])[pruned], count)
    ]
    kernel = (taps.shape[2], taps.shape[3])
    panel = Panel(
        title=f"Rebuilt from {len(taps) - len(outputs):,} templates of {len(taps):,} filters",
        images=torch.stack([torch.stack([found[one][n, c] for one in TRANSFORMS]) for n, c in chosen]),
        errors=[_share(taps, pruned, found[one]) for one in TRANSFORMS],
    )
    grid = FilterGrid(
        name=name,
        about=describe_filters(taps),
        filters=torch.stack([taps[n, c] for n, c in chosen]),
        labels=row_labels(taps, chosen),
        header=("transform", "values an output", f"error of all {len(outputs) * taps.shape[1]:,}"),
        columns=[
            ("original", str(taps[0].numel())),
            *((transform, str(prod(parameter_shape(transform, kernel)))) for transform in TRANSFORMS),
        ],
        panels=[panel],
        caption=_caption(rate),
    )
    Store(path.parent).write_bytes(path.name, render_grid(grid, path.suffix.removeprefix(".")))
    return path


@torch.no_grad()
def _rebuilt(layer: Convolution, rate: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Which filters are pruned (N,), and by transform what is rebuilt of all, float64 (N, C / groups, K_y, K_x)."""
    count = template_count(rate, layer.out_channels, 1)
    if count == layer.out_channels:
        raise UsageError(f"At pruning rate {rate} all {count} filters are templates: none is rebuilt.")
    exact, found = copy.deepcopy(layer).cpu().double(), dict[str, Tensor]()
    for transform in TRANSFORMS:
        assignment: Assignment | None = None if transform == "zero" or count == 1 else "residual"
        rebuilt = compress_layer(exact, LayerForm(templates=count, transform=transform, assignment=assignment))
        assert isinstance(rebuilt, CompressedConv2d)
        assert rebuilt.template_mask is not None
        found[transform], pruned = rebuilt.filters(), ~rebuilt.template_mask
    return pruned, found


def _errors(taps: Tensor, filters: Tensor) -> Tensor:
    return (taps - filters).flatten(-2).norm(dim=-1)


def _share(taps: Tensor, pruned: Tensor, filters: Tensor) -> float:
    """Of all together: the mean of shares would be of filters that are next to nothing."""
    norm = taps[pruned].norm()
    return float((taps - filters)[pruned].norm() / norm) if norm else 0.0


def _caption(rate: float) -> str:
    return (
        f"Pruning rate {rate:g}. Above each image: L2 error ‖W {MINUS} W\u2032‖₂ of the rebuilt filter, and its share "
        "of ‖W‖₂. Filters of largest magnitude are the templates, and each transform comes as near to the filter as it "
        "can, from the best template, in the space of the weights and before any training; compare figure 3 of Miles & "
        "Mikolajczyk. Zero is plain pruning. The error of all is that of the pruned filters together, as a share of "
        "their norm. Rows: pruned filters at even quantiles of the share with gains (scalar), the least at the top. "
        "One color scale a row: red above 0, blue below."
    )
