"""The front as a still picture for papers and pages: accuracy against size and against compute, side by side."""

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
from results.objectives import OBJECTIVES
from results.pareto.front import front
from spaces.papers import published_rows

__all__ = ["plot_front"]

_FRONT, _OTHER, _BASELINE, _KNEE, _PUBLISHED = "#2563eb", "#b4b4b4", "#e08a00", "#d6336c", "#0f766e"


def plot_front(ledger: Ledger, study: str, path: str | os.PathLike[str]) -> Path:
    """Draw a study's front into a `.png` or `.svg` file, whole or not at all; return its path.

    The same trials give the same bytes with the same libraries. Raises `UsageError` for any other kind of file, and
    `OvertoneError` if no trial has finished or the file cannot be written.
    """
    path = check_picture_path(path)
    summary = summarize(ledger, study)
    if not summary.finished.num_rows:
        raise OvertoneError(f"study {study!r} has no finished trial to draw")
    seeds = {trial: row for trial, row in confidence_by_trial(ledger, summary).items() if row["seeds"] > 1}
    return save_figure(_front_figure(summary, seeds), path, salt=study)


def _front_figure(summary: Summary, seeds: Mapping[str, Mapping[str, Any]]) -> Figure:
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, cost in ((left, "size_bytes"), (right, "flops")):
        _draw(axes, summary, seeds, cost)
        _draw_intervals(axes, summary, seeds, cost)
        _draw_published(axes, summary, cost)
    left.set_ylabel("validation accuracy (%)")
    model, dataset = (str(summary.record.get(key, "?")) for key in ("model", "dataset"))
    figure.suptitle(f"{model} on {dataset}: {summary.finished.num_rows} trials", parse_math=False, fontsize=12)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
    return figure


def _draw(axes: Axes, summary: Summary, seeds: Mapping[str, Any], cost: str) -> None:
    title, unit = cost_axis(cost)
    stairs = front(summary.finished, [OBJECTIVES["val_top1"], OBJECTIVES[cost]]).sort_by(cost)
    axes.scatter(*_points(summary.finished, cost), s=16, color=_OTHER, label="trials", linewidths=0)
    axes.step(*_points(stairs, cost), where="post", color=_FRONT, linewidth=1, linestyle=":")
    _draw_front(axes, summary, seeds, cost)
    if summary.knee is not None:
        place = summary.knee[cost] / unit, 100 * summary.knee["val_top1"]
        axes.scatter(*place, s=150, facecolors="none", edgecolors=_KNEE, linewidths=2, label="knee", zorder=4)
    if cost in summary.baseline and "val_top1" in summary.baseline:
        place = summary.baseline[cost] / unit, 100 * summary.baseline["val_top1"]
        axes.scatter(*place, s=70, marker="D", color=_BASELINE, label="uncompressed", zorder=3)
    _style(axes, title)


def _draw_front(axes: Axes, summary: Summary, seeds: Mapping[str, Any], cost: str) -> None:
    """Filled where other seeds were run too; hollow for a single seed where others have more."""
    known = pc.is_in(summary.front.column("trial"), value_set=pa.array(list(seeds), pa.string()))
    alone = _points(summary.front.filter(pc.invert(known)), cost)
    fill = "white" if seeds else _FRONT
    if alone[0]:
        axes.scatter(*alone, s=34, facecolors=fill, edgecolors=_FRONT, label="front (single seed)", zorder=3)
    if seeds:
        axes.scatter(
            *_points(summary.front.filter(known), cost), s=34, color=_FRONT, label="front (repeated)", zorder=3
        )


def _draw_intervals(axes: Axes, summary: Summary, seeds: Mapping[str, Mapping[str, Any]], cost: str) -> None:
    """The mean of a front member's seeds and its 95 % interval; a member without one has been run once."""
    rows = [(row[cost] / cost_axis(cost)[1], seeds[row["trial"]]) for row in _sure(summary, seeds)]
    if not rows:
        return
    means = [100 * row["val_top1_mean"] for _, row in rows]
    below = [100 * (row["val_top1_mean"] - row["val_top1_low"]) for _, row in rows]
    above = [100 * (row["val_top1_high"] - row["val_top1_mean"]) for _, row in rows]
    bars = axes.errorbar([x for x, _ in rows], means, yerr=(below, above), fmt="_", color=_FRONT, capsize=3, zorder=2)
    bars.set_label("mean of seeds, 95 %")


def _sure(summary: Summary, seeds: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [row for row in summary.front.to_pylist() if row["trial"] in seeds]


def _draw_published(axes: Axes, summary: Summary, cost: str) -> None:
    rows = published_rows(str(summary.record.get("model", "")), str(summary.record.get("dataset", "")))
    placed = [here for row in rows if {"val_top1", cost} <= (here := row.relative_to(summary.baseline)).keys()]
    if placed:
        x, y = [here[cost] / cost_axis(cost)[1] for here in placed], [100 * here["val_top1"] for here in placed]
        label = "published elsewhere, off this baseline"
        axes.scatter(x, y, s=34, marker="x", color=_PUBLISHED, linewidths=1.6, label=label, zorder=3)


def _points(table: pa.Table, cost: str) -> tuple[list[float], list[float]]:
    unit = cost_axis(cost)[1]
    accuracy = [100 * value for value in table.column("val_top1").to_pylist()]
    return [value / unit for value in table.column(cost).to_pylist()], accuracy


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
