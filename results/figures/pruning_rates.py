"""The pruning rate that one threshold over a network leaves each of its blocks, by saliency.

Miles & Mikolajczyk, figure 6: magnitude prunes all layers more alike than gradients do.
"""

import io
import os
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from results.figures.series import picture_path
from results.ledger.store import Store

__all__ = ["plot_pruning_rates"]

_COLORS = ("#2563eb", "#e08a00")


def plot_pruning_rates(
    rates: Mapping[str, Mapping[str, float]], path: str | os.PathLike[str], *, title: str, rate: float
) -> Path:
    """Draws rates (saliency -> block -> rate in [0, 1)) at a global `rate` as bars into a `.png` or `.svg` file."""
    path = picture_path(path, 1)
    blocks = list(next(iter(rates.values())))
    figure = Figure(figsize=(max(5.0, 1.5 + 0.32 * len(blocks) * len(rates)), 3.6), layout="constrained")
    axes, width = figure.subplots(), 0.8 / len(rates)
    for place, (saliency, found) in enumerate(rates.items()):
        left = [number + (place - (len(rates) - 1) / 2) * width for number in range(len(blocks))]
        heights = [100 * found[block] for block in blocks]
        axes.bar(left, heights, width, label=saliency, color=_COLORS[place % len(_COLORS)])
    axes.axhline(100 * rate, color="#666666", linewidth=0.8, linestyle=":", label="of all filters")
    axes.set_xticks(range(len(blocks)), blocks, rotation=90 if len(blocks) > 8 else 0)
    axes.set_ylim(0, 100)
    axes.set_ylabel("pruning rate (%)")
    axes.set_title(f"{title}: {100 * rate:g} % of all filters pruned by one threshold", parse_math=False, fontsize=11)
    axes.legend(frameon=False, ncols=3, fontsize=9)
    sink, kind = io.BytesIO(), path.suffix.removeprefix(".")
    with mpl.rc_context({"svg.hashsalt": title, "svg.fonttype": "path"}):
        figure.savefig(sink, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
    Store(path.parent).write_bytes(path.name, sink.getvalue())
    return path
