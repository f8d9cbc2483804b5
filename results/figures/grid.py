"""The picture of a layer's filters, row after row, beside their compressed forms.

Each image is drawn in its row's color scale, below its L2 error and that error's share of the filter's norm. Above each
column stands the error over all the filters that the column is about.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

__all__ = ["MINUS", "TIMES", "FilterGrid", "Panel", "render_grid"]

TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"
_INK, _GREY, _FRAME, _COLORMAP = "#111827", "#6b7280", "#9ca3af", "RdBu_r"
_EDGE, _LABELS, _PITCH, _GAP, _IMAGE, _LINE = 0.2, 1.6, 0.79, 0.3, 0.69, 0.155
"""Inches: margin of the picture, row labels, step to the next column, gap between panels, longer side of a filter, and
a line of text."""
_HEADS, _ROWS, _ABOVE = 1.05, 1.8, 0.42
"""Inches: baseline of the panels' titles, where the first row begins, and room for the numbers above each filter."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The same filters compressed in one way, more strongly from column to column."""

    title: str
    images: Tensor
    """(rows, columns, K_y, K_x)."""
    errors: Sequence[float]
    """Relative error of each column, over all the filters that it is about."""


@dataclass(frozen=True, kw_only=True)
class FilterGrid:
    """Everything that the picture shows."""

    name: str
    """The picture's title."""
    about: str
    """The line below the title."""
    filters: Tensor
    """The originals, (rows, K_y, K_x)."""
    labels: Sequence[str]
    """A label for each row."""
    header: tuple[str, str, str]
    """Labels of the three lines above the columns."""
    columns: Sequence[tuple[str, str]]
    """The first two of these lines: for the originals, then for each column of a panel."""
    panels: Sequence[Panel]
    caption: str


def render_grid(grid: FilterGrid) -> Figure:
    """Draw the picture, in the size that its text and images need."""
    figure = Figure()
    drawing = _Drawing(axes=figure.add_axes((0, 0, 1, 1)), grid=grid)
    _draw_text(drawing)
    _draw_rows(drawing)
    height = _draw_caption(drawing)
    drawing.axes.set(xlim=(0, drawing.width), ylim=(height, 0))
    drawing.axes.set_axis_off()
    figure.set_size_inches(drawing.width, height)
    return figure


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """Positions on the picture, in inches from the top left corner."""

    axes: Axes
    grid: FilterGrid

    @property
    def image(self) -> tuple[float, float]:
        """Width and height of a filter's image; thin filters are drawn thicker, so that they can be seen."""
        height, width = self.grid.filters.shape[1:]
        scale = _IMAGE / max(height, width)
        return max(width * scale, _LINE), max(height * scale, _LINE)

    @property
    def width(self) -> float:
        """Width of the picture, enough for its title."""
        return max(self.left(len(self.grid.panels)) - _GAP - (_PITCH - _IMAGE) + _EDGE, 6.2)

    def left(self, panel: int, column: int = 0) -> float:
        """Return the left edge of a column, which is as wide as a square filter; column 0 holds the originals."""
        return _EDGE + _LABELS + panel * (_PITCH * len(self.grid.columns) + _GAP) + column * _PITCH

    def top(self, row: int) -> float:
        """Return the top edge of a row's images; `row` may be one past the last."""
        return _ROWS + row * (self.image[1] + _ABOVE) + _ABOVE - 0.08

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Write text on the baseline y."""
        self.axes.text(x, y, text, **{"fontsize": 8, "color": _INK, "parse_math": False, **style})

    def lines(self, x: float, y: float, texts: Sequence[str], **style: Any) -> None:
        """Write lines of text, the first on the baseline y."""
        for number, text in enumerate(texts):
            self.text(x, y + number * _LINE, text, **style)


def _draw_text(drawing: _Drawing) -> None:
    """Draw the title, and above each column its head and the error over all filters."""
    grid = drawing.grid
    size = min(12, 115 * (drawing.width - 2 * _EDGE) / max(len(grid.name), 1))
    drawing.text(_EDGE, 0.38, grid.name, fontsize=size, weight="bold")
    drawing.text(_EDGE, 0.62, grid.about, color=_GREY)
    drawing.lines(drawing.left(0) - 0.14, _HEADS + 0.19, grid.header, ha="right", color=_GREY)
    for number, panel in enumerate(grid.panels):
        drawing.text(drawing.left(number), _HEADS, panel.title, fontsize=9.5, weight="bold")
        for column, (head, error) in enumerate(zip(grid.columns, (0.0, *panel.errors), strict=True)):
            middle = drawing.left(number, column) + _IMAGE / 2
            drawing.lines(middle, _HEADS + 0.19, head, ha="center")
            drawing.text(middle, _HEADS + 0.19 + 2 * _LINE, _percent(error), ha="center", weight="bold")


def _draw_rows(drawing: _Drawing) -> None:
    """Draw each filter and its compressed forms in one color scale, each image below its own error."""
    grid = drawing.grid
    for row, (filter_, label) in enumerate(zip(grid.filters, grid.labels, strict=True)):
        images = [panel.images[row] for panel in grid.panels]
        limit = float(torch.cat([filter_[None], *images]).abs().max()) or 1.0
        middle = drawing.top(row) + drawing.image[1] / 2
        drawing.text(drawing.left(0) - 0.14, middle - 0.02, label, ha="right")
        drawing.text(drawing.left(0) - 0.14, middle + _LINE - 0.02, f"colors ±{limit:#.2g}", ha="right", color=_GREY)
        norm = filter_.norm()
        for panel, approximations in enumerate(images):
            _draw_filter(drawing, row, (panel, 0), filter_, limit, ("‖W‖₂", f"{norm:#.3g}"))
            errors = (filter_ - approximations).flatten(1).norm(dim=1)
            for column, (image, error) in enumerate(zip(approximations, errors, strict=True), 1):
                texts = (f"{error:#.3g}", _percent(float(error / norm) if norm else 0.0))
                _draw_filter(drawing, row, (panel, column), image, limit, texts)


def _draw_filter(
    drawing: _Drawing, row: int, cell: tuple[int, int], image: Tensor, limit: float, texts: tuple[str, str]
) -> None:
    """Draw one image; `cell` is (panel, column), and `limit` the value at the ends of the color scale."""
    width, height = drawing.image
    middle = drawing.left(*cell) + _IMAGE / 2
    left, top = middle - width / 2, drawing.top(row)
    x, y = (torch.linspace(0, 1, taps + 1).numpy() for taps in (image.shape[1], image.shape[0]))
    x, y = left + width * x, top + height * y
    mesh = drawing.axes.pcolormesh(x, y, image.numpy(), cmap=_COLORMAP, vmin=-limit, vmax=limit)
    mesh.set(edgecolor="face", linewidth=0.6)  # or a browser shows the page between the taps of an SVG
    drawing.axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=_FRAME, linewidth=0.6))
    drawing.text(middle, top - 0.03 - _LINE, texts[0], ha="center")
    drawing.text(middle, top - 0.05, texts[1], ha="center", color=_GREY)


def _draw_caption(drawing: _Drawing) -> float:
    """Draw the caption below the last row; return the height of the picture."""
    lines = textwrap.wrap(drawing.grid.caption, int((drawing.width - 2 * _EDGE) / 0.0575))
    first = drawing.top(len(drawing.grid.labels)) - _ABOVE + 0.34
    drawing.lines(_EDGE, first, lines, color=_GREY)
    return first + (len(lines) - 1) * _LINE + _EDGE


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if 0 < share < 0.0995 else f"{100 * share:.0f} %"
