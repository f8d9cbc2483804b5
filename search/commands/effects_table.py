"""The effects of single blocks, as `overtone importance` shows them on a terminal."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from results.formatting import format_flops, format_kilobytes
from search.commands.display import print_table

__all__ = ["show_effects"]

_FORMS = 4
"""Forms of a block that are shown; `--json` has all."""
_NAMED = 5
"""Blocks that are named as the costliest."""


def show_effects(console: Console, effects: Mapping[str, Any] | None, title: str, score_name: str) -> None:
    """Print what each block costs alone, before any training, as `results.analysis.effects_table` returns it."""
    if effects is None:
        return
    costliest = ", ".join(f"{row['block']} {row['loss_increase']:.2g}" for row in effects["blocks"][:_NAMED])
    heading = f"{title}: what compressing one block alone costs before training; costliest on average: {costliest} nats"
    table = Table(title=heading, title_justify="left", caption=rule_line(effects), caption_justify="left")
    for column in ("block", "form", "loss", f"train {score_name.removeprefix('val_')}", "size", "compute"):
        table.add_column(column, justify="left" if column in ("block", "form") else "right")
    for _, group in itertools.groupby(effects["effects"], key=lambda row: row["block"]):
        rows = list(itertools.islice(group, _FORMS))
        for index, row in enumerate(rows):
            table.add_row(
                row["block"] if index == 0 else "",
                row["form"],
                f"{row['loss_increase']:+.4f} ± {row['loss_error']:.4f}",
                f"{row['score_change']:+.2%}",
                format_kilobytes(-row["bytes_saved"], "+,.1f"),
                format_flops(-row["flops_saved"], "+,.2f"),
                end_section=index == len(rows) - 1,
            )
    print_table(console, table)


def rule_line(effects: Mapping[str, Any]) -> str:
    """Return on what effects were measured, and how far the rule is off that tells those of other forms."""
    measured = f"{len(effects['effects'])} effects on {effects['images']} training images"
    if effects["held_out_error"] is None:
        return measured
    return (
        f"{measured}; left out in turn, they are told to within {effects['held_out_error']:.2g} nats on average, "
        f"typically a factor of {effects['held_out_factor']:.2g} (n = {effects['held_out']})"
    )
