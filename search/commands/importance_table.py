"""What `overtone importance` says on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from search.commands.display import kilobytes, megaflops, words

__all__ = ["show_insight"]


def show_insight(console: Console, found: Mapping[str, Any], title: str, limit: int) -> None:
    """Which knobs matter, what their values go with, and what the front's members have in common."""
    if not found["trials"]:
        console.print(f"{title}: no trial has finished yet", markup=False, highlight=False)
        return
    blocks = ", ".join(f"{block['block']} {block['share']:.0%}" for block in found["blocks"] if block["share"] > 0)
    heading = f"{title}: knobs that tell the best {found['best']} of {found['trials']} trials from the others"
    table = Table(title=heading, title_justify="left", caption=f"by block: {blocks or '-'}", caption_justify="left")
    for column in ("knob", "share", "by chance", "value", "trials", "val_top1", "size", "compute", "front", "all"):
        table.add_column(column, justify="left" if column in ("knob", "value") else "right")
    shares = {(row["knob"], row["value"]): row for row in found["shared"]}
    for knob in found["importance"][:limit]:
        effects = [row for row in found["effects"] if row["knob"] == knob["knob"]]
        for index, row in enumerate(effects):
            both = shares[row["knob"], row["value"]]
            head = (knob["knob"], f"{knob['share']:.1%}", f"p={knob['chance']:.2g}") if index == 0 else ("", "", "")
            table.add_row(
                *head,
                words([row["value"]]),
                str(row["n"]),
                f"{row['val_top1']:.2%}",
                kilobytes(row["size_bytes"]),
                megaflops(row["flops"]),
                f"{both['front']:.0%}",
                f"{both['all']:.0%}",
                end_section=index == len(effects) - 1,
            )
    console.print(table)
    if not found["importance"]:
        console.print("No knob stands out from what chance would give so few trials.", highlight=False)
