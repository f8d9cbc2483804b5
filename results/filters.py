"""A layer's filters beside their series at falling harmonics: what compression does to them before any training.

Costain & Prisacariu, figures 2-5: original kernels, their CosConv and ChebConv forms with ever fewer harmonics, and the
L2 error of each. As there, a series is the one nearest to the filter in the space of the weights; ours is the
closed-form least-squares answer.

Also ours: filters are picked by rule and not by eye, the mean error of all the layer's filters stands above each
column, and 3 x 3 filters are also drawn with harmonics that differ in y and x. Families that are one and the same
series on so few taps (3 x 3 and smaller) share a panel.
"""

import difflib
import io
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from layers.errors import OvertoneError, UsageError
from layers.series.basis import FAMILIES, Family, basis_matrix
from layers.series.harmonic import least_squares_coefficients, series_taps
from results.store import Store

__all__ = ["convolution", "draw_filters", "filter_errors", "mean_errors"]

Convolution = nn.Conv2d | nn.Conv1d
Harmonics = tuple[int, int]

_MOST_COLUMNS = 6
_TIMES, _MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"
_INK, _GREY, _FRAME, _COLOURS = "#111827", "#6b7280", "#9ca3af", "RdBu_r"
_EDGE, _LABELS, _PITCH, _GAP, _IMAGE, _LINE = 0.2, 1.6, 0.79, 0.3, 0.69, 0.155
"""Inches: margin of the picture, row labels, step to the next column, gap between panels, longer side of a filter, and
a line of text."""
_HEADS, _ROWS, _ABOVE = 1.05, 1.8, 0.42
"""Inches: baseline of the panels' titles, where the first row begins, and room for the numbers above each filter."""


def convolution(model: nn.Module, layer: str) -> Convolution:
    """The model's convolution of this name, of more than one tap; others are a `UsageError` that suggests some."""
    modules = dict(model.named_modules())
    known = {name: one for name, one in modules.items() if isinstance(one, Convolution) and prod(one.kernel_size) > 1}
    if layer in known:
        return known[layer]
    inside = [name for name in known if name.startswith(f"{layer}.")]
    close = inside or difflib.get_close_matches(layer, known, cutoff=0.4) or list(known)
    allowed = f"such as {', '.join(close[:3])}" if close else "and this network has none"
    kind = f" (a {type(modules[layer]).__name__})" if layer in modules else ""
    if isinstance(modules.get(layer), Convolution):
        kind = " (a 1x1 convolution)"
    raise UsageError(f"layer (={layer!r}){kind} must be a convolution of more than one tap, {allowed}.")


def filter_errors(taps: Tensor, family: Family, harmonics: Harmonics) -> Tensor:
    """L2 error of the series nearest to each filter: float64 (...) for taps (..., K_y, K_x)."""
    return (taps.double() - _series(taps, family, harmonics)).flatten(-2).norm(dim=-1)


def mean_errors(layer: Convolution, *, name: str) -> dict[Family, dict[str, float]]:
    """Mean of ||W - W_n|| / ||W|| over all filters of the layer called `name`, by family and harmonics (`2x2`).

    The harmonics are those of `draw_filters`, and so are the errors that are raised. A filter of zeros has error 0.
    """
    taps = _taps(layer, name)
    return {family: {f"{y}x{x}": _mean(taps, family, (y, x)) for y, x in _columns(taps)} for family in FAMILIES}


def draw_filters(layer: Convolution, path: str | os.PathLike[str], *, name: str, count: int = 6) -> Path:
    """Draws up to `count` filters of the layer called `name` into a `.png` or `.svg` file; gives back its path.

    A filter is what one output takes from one input channel. Those drawn lie at even quantiles of the relative error
    at the first step down, from the best served to the worst. The same filters give the same bytes with the same
    libraries. Raises `UsageError` for any other kind of file, for filters of one tap and for a count below 1, and
    `OvertoneError` where filters are not finite or the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise UsageError(f"path (={os.fspath(path)!r}) must end in .png or .svg.")
    if count < 1:
        raise UsageError(f"count (={count}) must be at least 1.")
    data = _drawn(_taps(layer, name), name, count, path.suffix.removeprefix("."))
    Store(path.parent).write_bytes(path.name, data)
    return path


def _taps(layer: Convolution, name: str) -> Tensor:
    """The filters in float64, (N, C / groups, K_y, K_x); those of a 1-D layer have one row."""
    taps = layer.weight.detach().cpu().double()
    if taps.ndim == 3:
        taps = taps.unsqueeze(2)
    if prod(taps.shape[2:]) == 1:
        raise UsageError(f"layer (={name!r}) must have filters of more than one tap, its filters are 1x1.")
    if not taps.isfinite().all():
        raise OvertoneError(f"Filters of {name!r} cannot be drawn: some are not finite.")
    return taps


def _series(taps: Tensor, family: Family, harmonics: Harmonics) -> Tensor:
    phi_y, phi_x = (basis_matrix(family, k, n) for k, n in zip(taps.shape[-2:], harmonics, strict=True))
    return series_taps(least_squares_coefficients(taps.double(), phi_y, phi_x), phi_y, phi_x)


def _shares(errors: Tensor, taps: Tensor) -> Tensor:
    """Errors relative to the filters' norms, 0 for filters of zeros."""
    norms = taps.flatten(-2).norm(dim=-1)
    return errors / norms.where(norms > 0, 1.0)


def _mean(taps: Tensor, family: Family, harmonics: Harmonics) -> float:
    return float(_shares(filter_errors(taps, family, harmonics), taps).mean())


def _columns(taps: Tensor) -> list[Harmonics]:
    """Falling harmonics (y, x): K - 1 to 1 in at most six steps; 3 x 3 filters first lose one in x, or in y."""
    height, width = taps.shape[-2:]
    longest = max(height, width)
    steps = torch.linspace(longest - 1, 1, min(longest - 1, _MOST_COLUMNS)).round().int().tolist()
    skewed = [(3, 2), (2, 3)] if (height, width) == (3, 3) else []
    return [*skewed, *((min(n, height), min(n, width)) for n in steps)]


def _first_step(taps: Tensor) -> Harmonics:
    return next(pair for pair in _columns(taps) if max(pair) < max(taps.shape[-2:]))


def _chosen(taps: Tensor, count: int) -> list[tuple[int, int]]:
    """(output, channel) of the filters to draw, best served first; filters of zeros only where there are no others."""
    shares = _shares(filter_errors(taps, "cosine", _first_step(taps)), taps).flatten()
    nonzero = taps.flatten(0, 1).flatten(1).any(-1).nonzero().flatten()
    candidates = nonzero if len(nonzero) else torch.arange(len(shares))
    ranked = candidates[shares[candidates].argsort(stable=True)]
    places = torch.linspace(0, len(ranked) - 1, min(count, len(ranked)), dtype=torch.float64).round().long()
    return [divmod(place, taps.shape[1]) for place in ranked[places].tolist()]


@dataclass(frozen=True, kw_only=True)
class _Panel:
    title: str
    series: Tensor
    """(rows, columns, K_y, K_x)."""
    means: Sequence[float]
    """Mean relative error of each column over all filters of the layer."""


def _panels(taps: Tensor, filters: Tensor) -> list[_Panel]:
    """One for each family, or one for both where they are the same series in every column."""
    columns = _columns(taps)
    unit = torch.eye(prod(taps.shape[-2:]), dtype=torch.float64).unflatten(1, taps.shape[-2:])
    spans = [torch.stack([_series(unit, family, pair) for pair in columns]) for family in FAMILIES]
    same = all(torch.allclose(span, spans[0], atol=1e-9) for span in spans)
    titles = {family: f"{family.capitalize()} series" for family in FAMILIES}
    if same:
        titles = {FAMILIES[0]: "Cosine and Chebyshev series (the same on so few taps)"}
    return [
        _Panel(
            title=title,
            series=torch.stack([_series(filters, family, pair) for pair in columns], 1),
            means=[_mean(taps, family, pair) for pair in columns],
        )
        for family, title in titles.items()
    ]


@dataclass(frozen=True, kw_only=True)
class _Sheet:
    """What is on the picture and where, in inches from its top left corner."""

    axes: Axes
    filters: Tensor
    """The originals, (rows, K_y, K_x)."""
    labels: Sequence[str]
    columns: Sequence[Harmonics]
    panels: Sequence[_Panel]

    @property
    def image(self) -> tuple[float, float]:
        """Width and height of a filter; thin ones are thickened to be seen."""
        height, width = self.filters.shape[1:]
        scale = _IMAGE / max(height, width)
        return max(width * scale, _LINE), max(height * scale, _LINE)

    @property
    def width(self) -> float:
        """Width of the picture, enough for its title."""
        return max(self.left(len(self.panels)) - _GAP - (_PITCH - _IMAGE) + _EDGE, 6.2)

    def left(self, panel: int, column: int = 0) -> float:
        """Where a column begins, as wide as a square filter; column 0 holds the originals."""
        return _EDGE + _LABELS + panel * (_PITCH * (1 + len(self.columns)) + _GAP) + column * _PITCH

    def top(self, row: int) -> float:
        """Where a row's images begin; one past the last row, where one more would."""
        return _ROWS + row * (self.image[1] + _ABOVE) + _ABOVE - 0.08

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Text on the baseline y."""
        self.axes.text(x, y, text, **{"fontsize": 8, "color": _INK, "parse_math": False, **style})

    def lines(self, x: float, y: float, texts: Sequence[str], **style: Any) -> None:
        """Lines of text, the first on the baseline y."""
        for number, text in enumerate(texts):
            self.text(x, y + number * _LINE, text, **style)


def _drawn(taps: Tensor, name: str, count: int, kind: str) -> bytes:
    chosen = _chosen(taps, count)
    filters = torch.stack([taps[output, channel] for output, channel in chosen])
    depthwise = taps.shape[1] == 1
    figure = Figure()
    sheet = _Sheet(
        axes=figure.add_axes((0, 0, 1, 1)),
        filters=filters,
        labels=[f"output {y}" if depthwise else f"output {y}, channel {x}" for y, x in chosen],
        columns=_columns(taps),
        panels=_panels(taps, filters),
    )
    _draw_text(sheet, name, taps.shape)
    _draw_rows(sheet)
    height = _draw_caption(sheet, taps)
    sheet.axes.set(xlim=(0, sheet.width), ylim=(height, 0))
    sheet.axes.set_axis_off()
    figure.set_size_inches(sheet.width, height)
    sink = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.savefig(sink, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
    return sink.getvalue()


def _draw_text(sheet: _Sheet, name: str, shape: Sequence[int]) -> None:
    """The title, and above each column its harmonics, coefficients and mean error over all filters."""
    outputs, channels, height, width = shape
    sheet.text(_EDGE, 0.38, name, fontsize=min(12, 115 * (sheet.width - 2 * _EDGE) / max(len(name), 1)), weight="bold")
    of = f"{outputs:,} output{'s' * (outputs > 1)} {_TIMES} {channels:,} input channel{'s' * (channels > 1)}"
    sheet.text(_EDGE, 0.62, f"{outputs * channels:,} filters ({of}) of {height} {_TIMES} {width} taps", color=_GREY)
    heads = (f"harmonics y {_TIMES} x", "coefficients", f"mean error, n = {outputs * channels:,}")
    sheet.lines(sheet.left(0) - 0.14, _HEADS + 0.19, heads, ha="right", color=_GREY)
    for number, panel in enumerate(sheet.panels):
        sheet.text(sheet.left(number), _HEADS, panel.title, fontsize=9.5, weight="bold")
        columns = [("original", height * width), *((f"{y} {_TIMES} {x}", y * x) for y, x in sheet.columns)]
        for column, ((harmonics, coefficients), mean) in enumerate(zip(columns, (0.0, *panel.means), strict=True)):
            middle = sheet.left(number, column) + _IMAGE / 2
            sheet.lines(middle, _HEADS + 0.19, (harmonics, str(coefficients)), ha="center")
            sheet.text(middle, _HEADS + 0.19 + 2 * _LINE, _percent(mean), ha="center", weight="bold")


def _draw_rows(sheet: _Sheet) -> None:
    """Each filter and its series on one colour scale, every one below its own error."""
    for row, (filter_, label) in enumerate(zip(sheet.filters, sheet.labels, strict=True)):
        series = [panel.series[row] for panel in sheet.panels]
        limit = float(torch.cat([filter_[None], *series]).abs().max()) or 1.0
        middle = sheet.top(row) + sheet.image[1] / 2
        sheet.text(sheet.left(0) - 0.14, middle - 0.02, label, ha="right")
        sheet.text(sheet.left(0) - 0.14, middle + _LINE - 0.02, f"colours ±{limit:#.2g}", ha="right", color=_GREY)
        norm = filter_.norm()
        for panel, approximations in enumerate(series):
            _draw_filter(sheet, row, (panel, 0), filter_, limit, ("‖W‖₂", f"{norm:#.3g}"))
            errors = (filter_ - approximations).flatten(1).norm(dim=1)
            for column, (image, error) in enumerate(zip(approximations, errors, strict=True), 1):
                texts = (f"{error:#.3g}", _percent(float(error / norm) if norm else 0.0))
                _draw_filter(sheet, row, (panel, column), image, limit, texts)


def _draw_filter(
    sheet: _Sheet, row: int, place: tuple[int, int], image: Tensor, limit: float, texts: tuple[str, str]
) -> None:
    middle, top, (width, height) = sheet.left(*place) + _IMAGE / 2, sheet.top(row), sheet.image
    left = middle - width / 2
    x, y = (torch.linspace(0, 1, taps + 1).numpy() for taps in (image.shape[1], image.shape[0]))
    x, y = left + width * x, top + height * y
    mesh = sheet.axes.pcolormesh(x, y, image.numpy(), cmap=_COLOURS, vmin=-limit, vmax=limit)
    mesh.set(edgecolor="face", linewidth=0.6)  # or a browser shows the page between the taps of an SVG
    sheet.axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=_FRAME, linewidth=0.6))
    sheet.text(middle, top - 0.03 - _LINE, texts[0], ha="center")
    sheet.text(middle, top - 0.05, texts[1], ha="center", color=_GREY)


def _draw_caption(sheet: _Sheet, taps: Tensor) -> float:
    """What is to be seen, below the last row; gives back the height of the picture."""
    y, x = _first_step(taps)
    skewed = " harmonics that differ in y and x are ours;" if (3, 2) in sheet.columns else ""
    text = (
        f"Above each image: L2 error ‖W {_MINUS} Wₙ‖₂ of the series, and its share of ‖W‖₂. The series are the nearest "
        "in the space of the weights (least squares), before any training, as in figures 2 to 5 of Costain & "
        f"Prisacariu;{skewed} the mean error is the mean share over all {taps.shape[0] * taps.shape[1]:,} filters. "
        f"Rows: filters at even quantiles of the share at {y} {_TIMES} {x} (cosine), the least at the top, the largest "
        "at the bottom. One colour scale a row: red above 0, blue below."
    )
    lines = textwrap.wrap(text, int((sheet.width - 2 * _EDGE) / 0.0575))
    first = sheet.top(len(sheet.labels)) - _ABOVE + 0.34
    sheet.lines(_EDGE, first, lines, color=_GREY)
    return first + (len(lines) - 1) * _LINE + _EDGE


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if 0 < share < 0.0995 else f"{100 * share:.0f} %"
