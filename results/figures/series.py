"""A layer's filters beside their series at falling harmonics: what compression does to them before any training.

Costain & Prisacariu, figures 2-5: original kernels, their CosConv and ChebConv forms with ever fewer harmonics, and the
L2 error of each. As there, a series is the one nearest to the filter in the space of the weights; ours is the
closed-form least-squares answer.

Our additions: filters are picked by rule and not by eye, the mean error of all the layer's filters stands above each
column, and 3 x 3 filters are also drawn with harmonics that differ in y and x. Families that give the same series on
few taps (3 x 3 and smaller) share a panel.
"""

import difflib
import os
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from layers.errors import OvertoneError, UsageError
from layers.series.basis import FAMILIES, Family
from layers.series.harmonic import least_squares_coefficients, series_taps
from layers.series.sampling import basis_matrix
from results.figures.grid import MINUS, TIMES, FilterGrid, Panel, render_grid
from results.figures.saving import check_picture_path, save_figure

__all__ = [
    *("Convolution", "describe_filters", "filter_errors", "filter_weights", "get_conv", "mean_errors", "plot_filters"),
    *("row_labels", "select_filters"),
]

Convolution = nn.Conv2d | nn.Conv1d
Harmonics = tuple[int, int]

_MAX_COLUMNS = 6


def get_conv(model: nn.Module, layer: str) -> Convolution:
    """Return the model's convolution of this name, which must have more than one tap.

    Raises `UsageError` for any other layer, and suggests some.
    """
    modules = dict(model.named_modules())
    convs = {name: one for name, one in modules.items() if isinstance(one, Convolution) and prod(one.kernel_size) > 1}
    if layer in convs:
        return convs[layer]
    inside = [name for name in convs if name.startswith(f"{layer}.")]
    close = inside or difflib.get_close_matches(layer, convs, cutoff=0.4) or list(convs)
    hint = f"such as {', '.join(close[:3])}" if close else "but this network has none"
    kind = f" (a {type(modules[layer]).__name__})" if layer in modules else ""
    if isinstance(modules.get(layer), Convolution):
        kind = " (a 1x1 convolution)"
    raise UsageError(f"layer (={layer!r}){kind} must be a convolution of more than one tap, {hint}")


def filter_weights(layer: Convolution, name: str) -> Tensor:
    """Return the filters in float64, (N, C / groups, K_y, K_x); those of a 1-D layer have one row.

    `name` is what errors call the layer. Raises `UsageError` for filters of one tap, and `OvertoneError` if some are
    not finite.
    """
    taps = layer.weight.detach().cpu().double()
    if taps.ndim == 3:
        taps = taps.unsqueeze(2)
    if prod(taps.shape[2:]) == 1:
        raise UsageError(f"layer (={name!r}) must have filters of more than one tap, but its filters are 1x1")
    if not taps.isfinite().all():
        raise OvertoneError(f"cannot draw the filters of {name!r}: some are not finite")
    return taps


def filter_errors(taps: Tensor, family: Family, harmonics: Harmonics) -> Tensor:
    """Return the L2 error of the series nearest to each filter: float64 (...) for taps (..., K_y, K_x)."""
    return (taps.double() - _series(taps, family, harmonics)).flatten(-2).norm(dim=-1)


def mean_errors(layer: Convolution, *, name: str) -> dict[Family, dict[str, float]]:
    """Return the mean of ||W - W_n|| / ||W|| over all filters of a layer, by family and harmonics (`2x2`).

    `name` is what errors call the layer. The harmonics are those of `plot_filters`, which raises the same errors. A
    filter of zeros has error 0.
    """
    taps = filter_weights(layer, name)
    return {family: {f"{y}x{x}": _mean_error(taps, family, (y, x)) for y, x in _columns(taps)} for family in FAMILIES}


def plot_filters(layer: Convolution, path: str | os.PathLike[str], *, name: str, count: int = 6) -> Path:
    """Draw up to `count` filters of the layer called `name` into a `.png` or `.svg` file; return its path.

    A filter is what one output takes from one input channel. Those drawn lie at even quantiles of the relative error
    at the first step down, smallest first. The same filters give the same bytes with the same libraries. Raises
    `UsageError` for any other kind of file, for filters of one tap and for a count below 1, and `OvertoneError` if
    filters are not finite or the file cannot be written.
    """
    path = check_picture_path(path)
    grid = _filter_grid(filter_weights(layer, name), name, count)
    return save_figure(render_grid(grid), path, salt=name)


def select_filters(taps: Tensor, errors: Tensor, count: int) -> list[tuple[int, int]]:
    """Return (output, channel) of up to `count` filters at even quantiles of the relative error, smallest first.

    Takes taps (N, C, K_y, K_x) and their L2 errors (N, C). Filters of zeros are left out, unless there are no others.
    Raises `UsageError` for a count below 1.
    """
    if count < 1:
        raise UsageError(f"count (={count}) must be at least 1")
    shares = _relative(errors, taps).flatten()
    nonzero = taps.flatten(0, 1).flatten(1).any(-1).nonzero().flatten()
    candidates = nonzero if len(nonzero) else torch.arange(len(shares))
    ranked = candidates[shares[candidates].argsort(stable=True)]
    quantiles = torch.linspace(0, len(ranked) - 1, min(count, len(ranked)), dtype=torch.float64).round().long()
    return [divmod(index, taps.shape[1]) for index in ranked[quantiles].tolist()]


def describe_filters(taps: Tensor) -> str:
    """Say how many filters (N, C / groups, K_y, K_x) there are, and how large."""
    outputs, channels, height, width = taps.shape
    of = f"{outputs:,} output{'s' * (outputs > 1)} {TIMES} {channels:,} input channel{'s' * (channels > 1)}"
    return f"{outputs * channels:,} filters ({of}) of {height} {TIMES} {width} taps"


def row_labels(taps: Tensor, filters: Sequence[tuple[int, int]]) -> list[str]:
    """Return the labels of rows that show these filters (output, channel) of a layer."""
    return [f"output {y}" if taps.shape[1] == 1 else f"output {y}, channel {x}" for y, x in filters]


def _series(taps: Tensor, family: Family, harmonics: Harmonics) -> Tensor:
    phi_y, phi_x = (basis_matrix(family, k, n) for k, n in zip(taps.shape[-2:], harmonics, strict=True))
    return series_taps(least_squares_coefficients(taps.double(), phi_y, phi_x), phi_y, phi_x)


def _relative(errors: Tensor, taps: Tensor) -> Tensor:
    """Divide errors by the filters' norms; filters of zeros get 0."""
    norms = taps.flatten(-2).norm(dim=-1)
    return errors / norms.where(norms > 0, 1.0)


def _mean_error(taps: Tensor, family: Family, harmonics: Harmonics) -> float:
    return float(_relative(filter_errors(taps, family, harmonics), taps).mean())


def _columns(taps: Tensor) -> list[Harmonics]:
    """Return falling harmonics (y, x): K - 1 to 1 in at most six steps; 3 x 3 filters first lose one in x, or in y."""
    height, width = taps.shape[-2:]
    longest = max(height, width)
    steps = torch.linspace(longest - 1, 1, min(longest - 1, _MAX_COLUMNS)).round().int().tolist()
    skewed = [(3, 2), (2, 3)] if (height, width) == (3, 3) else []
    return [*skewed, *((min(n, height), min(n, width)) for n in steps)]


def _first_step(taps: Tensor) -> Harmonics:
    return next(pair for pair in _columns(taps) if max(pair) < max(taps.shape[-2:]))


def _filter_grid(taps: Tensor, name: str, count: int) -> FilterGrid:
    columns = _columns(taps)
    selected = select_filters(taps, filter_errors(taps, "cosine", _first_step(taps)), count)
    filters = torch.stack([taps[output, channel] for output, channel in selected])
    height, width = taps.shape[2:]
    heads = [(f"{y} {TIMES} {x}", str(y * x)) for y, x in columns]
    return FilterGrid(
        name=name,
        about=describe_filters(taps),
        filters=filters,
        labels=row_labels(taps, selected),
        header=(f"harmonics y {TIMES} x", "coefficients", f"mean error, n = {taps.shape[0] * taps.shape[1]:,}"),
        columns=[("original", str(height * width)), *heads],
        panels=_panels(taps, filters),
        caption=_caption(taps),
    )


def _panels(taps: Tensor, filters: Tensor) -> list[Panel]:
    """Make a panel for each family, or one for both if they are the same series in every column."""
    columns = _columns(taps)
    unit = torch.eye(prod(taps.shape[-2:]), dtype=torch.float64).unflatten(1, taps.shape[-2:])
    spans = [torch.stack([_series(unit, family, pair) for pair in columns]) for family in FAMILIES]
    same = all(torch.allclose(span, spans[0], atol=1e-9) for span in spans)
    titles = {family: f"{family.capitalize()} series" for family in FAMILIES}
    if same:
        titles = {FAMILIES[0]: "Cosine and Chebyshev series (the same on so few taps)"}
    return [
        Panel(
            title=title,
            images=torch.stack([_series(filters, family, pair) for pair in columns], 1),
            errors=[_mean_error(taps, family, pair) for pair in columns],
        )
        for family, title in titles.items()
    ]


def _caption(taps: Tensor) -> str:
    y, x = _first_step(taps)
    skewed = " harmonics that differ in y and x are ours;" if (3, 2) in _columns(taps) else ""
    return (
        f"Above each image: L2 error ‖W {MINUS} Wₙ‖₂ of the series, and its share of ‖W‖₂. The series are the nearest "
        "in the space of the weights (least squares), before any training, as in figures 2 to 5 of Costain & "
        f"Prisacariu;{skewed} the mean error is the mean share over all {taps.shape[0] * taps.shape[1]:,} filters. "
        f"Rows: filters at even quantiles of the share at {y} {TIMES} {x} (cosine), the least at the top, the largest "
        "at the bottom. One color scale a row: red above 0, blue below."
    )
