"""The effects of single blocks as a still picture: a row for each block, a panel for each form."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layers.errors import OvertoneError
from results.analysis.effects_table import effects_table
from results.figures.saving import check_picture_path, save_figure
from results.ledger.ledger import Ledger

__all__ = ["plot_effects"]

_PANELS = 4
_LEAST = 1e-5
"""Nats; effects below are drawn at it."""
_COLOR = "#2563eb"


def plot_effects(ledger: Ledger, study: str, path: str | os.PathLike[str]) -> Path:
    """Draw what compressing each block alone costs into a `.png` or `.svg` file, whole or not at all; return its path.

    Shown are the forms that most blocks have, with twice their standard errors. The same effects give the same bytes
    with the same libraries. Raises `UsageError` for any other kind of file, and `OvertoneError` if no effect was
    measured or the file cannot be written.
    """
    path = check_picture_path(path)
    effects = effects_table(ledger, study)
    if effects is None:
        raise OvertoneError(f"study {study!r} has no effects to draw: a search with the sampler ehvi measures them")
    return save_figure(_figure(effects, study), path, salt=study)


def _figure(effects: Mapping[str, Any], study: str) -> Figure:
    rows: Sequence[Mapping[str, Any]] = effects["effects"]
    blocks = list(dict.fromkeys(row["block"] for row in rows))
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["form"]] = counts.get(row["form"], 0) + 1
    common = [form for form in counts if 2 * counts[form] >= max(counts.values())]
    forms = sorted(common, key=lambda form: -counts[form])[:_PANELS]
    highest = max(row["loss_increase"] + 2 * row["loss_error"] for row in rows if row["form"] in forms)
    figure = Figure(figsize=(2.2 + 2.6 * len(forms), 1.6 + 0.24 * len(blocks)), layout="constrained")
    panels = figure.subplots(1, len(forms), sharex=True, sharey=True, squeeze=False)[0]
    for axes, form in zip(panels, forms, strict=True):
        _draw(axes, {row["block"]: row for row in rows if row["form"] == form}, blocks)
        axes.set_title(form, fontsize=9, parse_math=False)
    panels[0].set_yticks(range(len(blocks)), blocks)
    panels[0].set_xscale("log")
    panels[0].set_xlim(_LEAST / 2, 1.5 * max(highest, 10 * _LEAST))
    panels[0].set_ylim(len(blocks) - 0.5, -0.5)
    figure.supxlabel("rise of the loss with this block alone compressed, before training (nats)", fontsize=9)
    figure.suptitle(f"{study}: effects of single blocks", parse_math=False, fontsize=11)
    return figure


def _draw(axes: Axes, rows: Mapping[str, Mapping[str, Any]], blocks: Sequence[str]) -> None:
    shown = [(place, rows[block]) for place, block in enumerate(blocks) if block in rows]
    losses = [max(row["loss_increase"], _LEAST) for _, row in shown]
    below = [min(2 * row["loss_error"], loss - _LEAST / 2) for (_, row), loss in zip(shown, losses, strict=True)]
    above = [2 * row["loss_error"] for _, row in shown]
    places = [place for place, _ in shown]
    axes.barh(places, [loss - _LEAST / 2 for loss in losses], left=_LEAST / 2, height=0.6, color=_COLOR, alpha=0.8)
    axes.errorbar(losses, places, xerr=(below, above), fmt="none", ecolor="#111827", elinewidth=0.8)
    axes.grid(axis="x", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
