"""The pruning rate that one threshold over a network leaves each of its blocks, by saliency.

Miles & Mikolajczyk, figure 6: magnitude prunes all layers more alike than gradients do.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from results.figures.saving import check_picture_path, save_figure

__all__ = ["plot_pruning_rates"]

_COLORS = ("#2563eb", "#e08a00")


def plot_pruning_rates(
    rates: Mapping[str, Mapping[str, float]], path: str | os.PathLike[str], *, title: str, rate: float
) -> Path:
    """Draw the rate of each block as bars, side by side for each saliency; return the file's path.

    `rates` is saliency -> block -> rate in [0, 1), with the same blocks for each saliency; `rate` is that of all
    filters together. Raises `UsageError` unless the file is a `.png` or `.svg`, and `OvertoneError` if it cannot be
    written.
    """
    path = check_picture_path(path)
    blocks = list(next(iter(rates.values())))
    figure = Figure(figsize=(max(5.0, 1.5 + 0.32 * len(blocks) * len(rates)), 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(rates)
    for index, (saliency, by_block) in enumerate(rates.items()):
        left = [number + (index - (len(rates) - 1) / 2) * width for number in range(len(blocks))]
        heights = [100 * by_block[block] for block in blocks]
        axes.bar(left, heights, width, label=saliency, color=_COLORS[index % len(_COLORS)])
    axes.axhline(100 * rate, color="#666666", linewidth=0.8, linestyle=":", label="of all filters")
    axes.set_xticks(range(len(blocks)), blocks, rotation=90 if len(blocks) > 8 else 0)
    axes.set_ylim(0, 100)
    axes.set_ylabel("pruning rate (%)")
    axes.set_title(f"{title}: {100 * rate:g} % of all filters pruned by one threshold", parse_math=False, fontsize=11)
    axes.legend(frameon=False, ncols=3, fontsize=9)
    return save_figure(figure, path, salt=title)
