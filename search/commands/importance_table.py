"""What `overtone importance` shows on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from results.formatting import format_flops, format_kilobytes
from search.commands.display import format_values, print_table

__all__ = ["show_importance"]


def show_importance(console: Console, result: Mapping[str, Any], title: str, score_name: str, limit: int) -> None:
    """Print the `limit` most important knobs, the means that go with their values, and their shares of the front.

    `result` is what `results.analysis.importance` returns; the score stands under its own name.
    """
    if not result["trials"]:
        console.print(f"{title}: no trial has finished yet", markup=False, highlight=False)
        return
    stages = [stage for stage in result["stages"] if stage["share"] > 0]
    totals = ", ".join(f"{stage['stage']} {stage['share']:.0%}" for stage in stages)
    by = "stage" if any(len(stage["blocks"]) > 1 for stage in stages) else "block"
    heading = f"{title}: knobs that tell the best {result['best']} of {result['trials']} trials from the others"
    table = Table(title=heading, title_justify="left", caption=f"by {by}: {totals or '-'}", caption_justify="left")
    for column in ("knob", "share", "by chance", "value", "trials", score_name, "size", "compute", "front", "all"):
        table.add_column(column, justify="left" if column in ("knob", "value") else "right")
    for knob in result["importance"][:limit]:
        _add_knob(table, knob, result)
    print_table(console, table)
    if by == "stage":
        print_table(console, _layers(stages))
    if not result["importance"]:
        console.print("no knob stands out from what chance would give so few trials", highlight=False)


def _layers(stages: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table with a line for each stage, and its layers below it."""
    table = Table(title="by stage, and its layers", title_justify="left")
    table.add_column("part")
    table.add_column("share", justify="right")
    for stage in stages:
        layers = [layer for layer in stage["blocks"] if layer["share"] > 0 and layer["block"] != stage["stage"]]
        table.add_row(stage["stage"], f"{stage['share']:.1%}", end_section=not layers)
        for index, layer in enumerate(layers):
            table.add_row(f"  {layer['block']}", f"{layer['share']:.1%}", end_section=index == len(layers) - 1)
    return table


def _add_knob(table: Table, knob: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Add a row for each value of the knob, the first with the knob's own figures."""
    effects: Sequence[Mapping[str, Any]] = [row for row in result["effects"] if row["knob"] == knob["knob"]]
    shares = {row["value"]: row for row in result["shared"] if row["knob"] == knob["knob"]}
    for index, row in enumerate(effects):
        head = (knob["knob"], f"{knob['share']:.1%}", f"p={knob['chance']:.2g}") if index == 0 else ("", "", "")
        table.add_row(
            *head,
            format_values([row["value"]]),
            str(row["n"]),
            f"{row['score']:.2%}",
            format_kilobytes(row["size_bytes"]),
            format_flops(row["flops"]),
            f"{shares[row['value']]['front']:.0%}",
            f"{shares[row['value']]['all']:.0%}",
            end_section=index == len(effects) - 1,
        )
