"""The front as a still picture for papers and pages: the score against size and against compute, side by side."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from layers.errors import OvertoneError
from results.analysis.summary import Summary, confidence_by_trial, summarize
from results.figures.saving import check_picture_path, save_figure
from results.formatting import cost_axis
from results.ledger.ledger import Ledger
from results.objectives import COSTS, SCORE
from results.pareto.front import front
from results.report.published import published_beside

__all__ = ["plot_front"]

_FRONT, _OTHER, _BASELINE, _KNEE, _PUBLISHED = "#2563eb", "#b4b4b4", "#e08a00", "#d6336c", "#0f766e"
_SKETCH = "#7c3aed"

Repeats = Mapping[str, Mapping[str, Any]]
"""Confidence of the front's members that were repeated with other seeds, by trial."""


def plot_front(ledger: Ledger, study: str, path: str | os.PathLike[str]) -> Path:
    """Draw a study's front into a `.png` or `.svg` file, whole or not at all; return its path.

    The same trials give the same bytes with the same libraries. Raises `UsageError` for any other kind of file, and
    `OvertoneError` if no trial has finished and nothing was sketched, or the file cannot be written.
    """
    path = check_picture_path(path)
    summary = summarize(ledger, study)
    if not summary.finished.num_rows and not summary.sketches.num_rows:
        raise OvertoneError(f"study {study!r} has no finished trial to draw")
    repeats = {trial: row for trial, row in confidence_by_trial(ledger, summary).items() if row["seeds"] > 1}
    return save_figure(_front_figure(summary, repeats), path, salt=study)


def _front_figure(summary: Summary, repeats: Repeats) -> Figure:
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, cost in ((left, "size_bytes"), (right, "flops")):
        if summary.finished.num_rows:
            _draw_trials(axes, summary, cost)
            _draw_front(axes, summary, repeats, cost)
        _draw_landmarks(axes, summary, cost)
        _style(axes, cost_axis(cost)[0])
        _draw_intervals(axes, summary, repeats, cost)
        _draw_published(axes, summary, cost)
        _draw_sketches(axes, summary, cost)
    left.set_ylabel(f"{summary.score_name} (%)", parse_math=False)
    model, dataset = (str(summary.record.get(key, "?")) for key in ("model", "dataset"))
    sketches = f", {summary.sketches.num_rows} sketches" if summary.sketches.num_rows else ""
    title = f"{model} on {dataset}: {summary.finished.num_rows} trials{sketches}"
    figure.suptitle(title, parse_math=False, fontsize=12)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
    return figure


def _draw_trials(axes: Axes, summary: Summary, cost: str) -> None:
    """Draw all trials, and a dotted line along the best in score and this cost alone."""
    best = front(summary.finished, [SCORE, COSTS[cost]]).sort_by(cost)
    axes.scatter(*_points(summary.finished, cost), s=16, color=_OTHER, label="trials", linewidths=0)
    axes.step(*_points(best, cost), where="post", color=_FRONT, linewidth=1, linestyle=":")


def _draw_front(axes: Axes, summary: Summary, repeats: Repeats, cost: str) -> None:
    """Draw members filled if they were repeated with other seeds, else hollow; all filled if none was repeated."""
    is_repeated = pc.is_in(summary.front.column("trial"), value_set=pa.array(list(repeats), pa.string()))
    single = _points(summary.front.filter(pc.invert(is_repeated)), cost)
    fill = "white" if repeats else _FRONT
    if single[0]:
        axes.scatter(*single, s=34, facecolors=fill, edgecolors=_FRONT, label="front (single seed)", zorder=3)
    if repeats:
        repeated = _points(summary.front.filter(is_repeated), cost)
        axes.scatter(*repeated, s=34, color=_FRONT, label="front (repeated)", zorder=3)


def _draw_landmarks(axes: Axes, summary: Summary, cost: str) -> None:
    """Draw the knee and the uncompressed network."""
    if summary.knee is not None:
        point = _point(summary.knee, cost)
        axes.scatter(*point, s=150, facecolors="none", edgecolors=_KNEE, linewidths=2, label="knee", zorder=4)
    if {"score", cost} <= summary.baseline.keys():
        point = _point(summary.baseline, cost)
        axes.scatter(*point, s=70, marker="D", color=_BASELINE, label="uncompressed", zorder=3)


def _draw_intervals(axes: Axes, summary: Summary, repeats: Repeats, cost: str) -> None:
    """Draw the mean and its 95 % interval of each member that was repeated with other seeds."""
    members = [row for row in summary.front.select(["trial", cost]).to_pylist() if row["trial"] in repeats]
    if not members:
        return
    rows = [repeats[member["trial"]] for member in members]
    x = [member[cost] / cost_axis(cost)[1] for member in members]
    means = [100 * row["score_mean"] for row in rows]
    below = [100 * (row["score_mean"] - row["score_low"]) for row in rows]
    above = [100 * (row["score_high"] - row["score_mean"]) for row in rows]
    bars = axes.errorbar(x, means, yerr=(below, above), fmt="_", color=_FRONT, capsize=3, zorder=2)
    bars.set_label("mean of seeds, 95 %")


def _draw_published(axes: Axes, summary: Summary, cost: str) -> None:
    points = [_point(placed.at, cost) for placed in published_beside(summary) if {"score", cost} <= placed.at.keys()]
    if points:
        label = "published elsewhere, relative to this baseline"
        x, y = zip(*points, strict=True)
        axes.scatter(x, y, s=34, marker="x", color=_PUBLISHED, linewidths=1.6, label=label, zorder=3)


def _draw_sketches(axes: Axes, summary: Summary, cost: str) -> None:
    """Draw what was calibrated and never trained, at its score before training."""
    if summary.sketches.num_rows:
        points = _points(summary.sketches, cost, "init_score")
        axes.scatter(*points, s=30, marker="^", facecolors="none", edgecolors=_SKETCH, label="sketch (never trained)")


def _points(table: pa.Table, cost: str, score: str = SCORE.column) -> tuple[list[float], list[float]]:
    unit = cost_axis(cost)[1]
    scores = [100 * value for value in table.column(score).to_pylist()]
    return [value / unit for value in table.column(cost).to_pylist()], scores


def _point(values: Mapping[str, Any], cost: str) -> tuple[float, float]:
    return values[cost] / cost_axis(cost)[1], 100 * values["score"]


def _style(axes: Axes, title: str) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    narrow = high < 5 * low
    axes.xaxis.set_major_locator(
        LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0) if narrow else (1.0, 2.0, 5.0))
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(title)
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
