"""The report's section on single blocks: what compressing each alone costs, before any training."""

from collections.abc import Mapping
from html import escape
from typing import Any

from results.formatting import format_flops, format_kilobytes
from results.report.page import table

__all__ = ["effects_section"]

_NAMED = 5


def effects_section(effects: Mapping[str, Any]) -> str:
    """Return the section as HTML, from what `results.analysis.effects_table` returns."""
    costliest = ", ".join(
        f"<code>{escape(row['block'])}</code> {row['loss_increase']:.2g}" for row in effects["blocks"][:_NAMED]
    )
    head = [("block", "text"), ("form", "text"), ("loss (nats)", "number"), ("training score", "number")]
    head += [("size", "number"), ("compute", "number")]
    return (
        '<section aria-labelledby="effects"><h2 id="effects">Which block costs the accuracy</h2>'
        f'<p class="note">One block alone is compressed and calibrated, without any training, and the network measured '
        f"on {effects['images']} training images. Costliest on average: {costliest} nats. {_rule(effects)}</p>"
        f"<details><summary>{len(effects['effects'])} effects</summary>"
        + table(label="Effects of single blocks", head=head, rows=[_cells(row) for row in effects["effects"]])
        + "</details></section>"
    )


def _rule(effects: Mapping[str, Any]) -> str:
    if effects["held_out_error"] is None:
        return ""
    return (
        f"Other forms are told from these by a rule; each effect left out in turn, it is off by "
        f"{effects['held_out_error']:.2g} nats on average, typically by a factor of {effects['held_out_factor']:.2g} "
        f"(n = {effects['held_out']})."
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        *(escape(row[name]) for name in ("block", "form")),
        f"{row['loss_increase']:+.4f} ± {row['loss_error']:.4f}",
        f"{100 * row['score_change']:+.2f} %",
        format_kilobytes(-row["bytes_saved"], "+,.1f"),
        format_flops(-row["flops_saved"], "+,.2f"),
    ]
