"""The report's interactive pictures: accuracy against a cost, and hypervolume over trials.

Colours and lines are chosen to be read on a light and on a dark page, and by people who confuse colours: every group of
points has its own shape. Text takes its colour from the page.
"""

from collections.abc import Mapping
from html import escape
from typing import Any

import plotly.graph_objects as go
import pyarrow as pa

from results.front import front
from results.network import block_text
from results.objectives import OBJECTIVES
from results.summary import Summary
from results.units import cost_axis, figures_text

__all__ = ["history_figure", "scatter_figure"]

_FRONT, _OTHER, _BASELINE, _KNEE, _GRID = (
    "#3b82f6",
    "rgba(128,128,128,0.55)",
    "#e08a00",
    "#d6336c",
    "rgba(128,128,128,0.22)",
)
_MANY = 2000


def scatter_figure(summary: Summary, cost: str) -> go.Figure:
    """Validation accuracy against one cost (log axis): all finished trials, the front, the baseline, the knee.

    The line is the staircase of what is best in these two figures alone; a study of more objectives has front points
    below it.
    """
    title, unit = cost_axis(cost)
    others = summary.finished.filter(_not_in(summary.finished, summary.front))
    staircase = front(summary.finished, [OBJECTIVES["val_top1"], OBJECTIVES[cost]]).sort_by(cost)
    figure = go.Figure(layout=_layout(title, "validation accuracy (%)"))
    figure.update_xaxes(type="log", dtick="D2", tickformat=",~g")
    stairs = {"mode": "lines", "line": {"color": _FRONT, "width": 1.5, "shape": "hv", "dash": "dot"}}
    figure.add_scatter(
        x=_column(staircase, cost, unit),
        y=_column(staircase, "val_top1", 0.01),
        **stairs,
        hoverinfo="skip",
        showlegend=False,
    )
    _add_points(figure, others, cost, name="other trials", color=_OTHER, symbol="circle", size=7)
    _add_points(figure, summary.front, cost, name="front", color=_FRONT, symbol="circle", size=10)
    if summary.knee is not None:
        chosen = pa.Table.from_pylist([summary.knee], schema=summary.front.schema)
        _add_points(figure, chosen, cost, name="knee", color=_KNEE, symbol="circle-open", size=18)
    _add_baseline(figure, summary.baseline, cost)
    return figure


def history_figure(summary: Summary) -> go.Figure:
    """The hypervolume after each finished trial."""
    figure = go.Figure(layout=_layout("finished trials", "hypervolume"))
    counts = list(range(1, len(summary.history) + 1))
    line = {"color": _FRONT, "width": 2, "shape": "hv"}
    template = "after %{x} trials: %{y:.4f}<extra></extra>"
    figure.add_scatter(x=counts, y=summary.history.tolist(), mode="lines", line=line, hovertemplate=template)
    figure.update_layout(height=300, margin_t=40)
    return figure


def _add_points(
    figure: go.Figure, table: pa.Table, cost: str, *, name: str, color: str, symbol: str, size: int
) -> None:
    """Points of one kind with the network block by block under the pointer; WebGL where there are many."""
    kind = go.Scattergl if table.num_rows > _MANY else go.Scatter
    marker: dict[str, Any] = {"color": color, "symbol": symbol, "size": size}
    if symbol.endswith("-open"):
        marker["line"] = {"width": 2.5}
    figure.add_trace(
        kind(
            x=_column(table, cost, cost_axis(cost)[1]),
            y=_column(table, "val_top1", 0.01),
            text=[_hover(row) for row in table.to_pylist()],
            mode="markers",
            name=name,
            marker=marker,
            hovertemplate="%{text}<extra></extra>",
        )
    )


def _add_baseline(figure: go.Figure, baseline: Mapping[str, float], cost: str) -> None:
    if cost not in baseline or "val_top1" not in baseline:
        return
    figure.add_scatter(
        x=[baseline[cost] / cost_axis(cost)[1]],
        y=[100 * baseline["val_top1"]],
        text=[f"<b>uncompressed</b><br>{escape(figures_text(baseline))}"],
        mode="markers",
        name="uncompressed",
        marker={"color": _BASELINE, "symbol": "diamond", "size": 13},
        hovertemplate="%{text}<extra></extra>",
    )


def _hover(row: Mapping[str, Any]) -> str:
    """The trial, its figures and its network, escaped for plotly's own little HTML."""
    lines = [f"<b>{escape(row['trial'])}</b>", escape(figures_text(row))]
    return "<br>".join([*lines, *(escape(block_text(block)) for block in row["blocks"])])


def _column(table: pa.Table, name: str, unit: float) -> list[float]:
    return [value / unit for value in table.column(name).to_pylist()]


def _not_in(table: pa.Table, members: pa.Table) -> pa.Array:
    known = set(members.column("trial").to_pylist())
    return pa.array([trial not in known for trial in table.column("trial").to_pylist()], type=pa.bool_())


def _layout(x: str, y: str) -> dict[str, Any]:
    axis = {"gridcolor": _GRID, "zeroline": False, "linecolor": _GRID, "automargin": True}
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "margin": {"l": 60, "r": 16, "t": 64, "b": 52},
        "height": 420,
        "legend": {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom"},
        "hoverlabel": {"align": "left", "bgcolor": "#1f2937", "font": {"color": "#f9fafb", "size": 12}},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "rgba(128,128,128,0.7)", "activecolor": _FRONT},
        "xaxis": {**axis, "title": {"text": x}},
        "yaxis": {**axis, "title": {"text": y}},
    }
