"""Rows of the ledger as a table on a terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from results.formatting import format_flops, format_kilobytes, format_network, format_place
from results.objectives import init_name
from results.queries.answer import Answer
from results.queries.formats import texts
from search.commands.display import print_table
from search.commands.output import encodable

__all__ = ["format_score", "show_answer", "show_trials"]

_HEADERS = {
    "probability_dominated": "P(dominated)",
    "size_bytes": "size",
    "flops": "compute",
    "predicted_loss_increase": "predicted loss",
    "latency_ms": "latency",
    "latency_b64_ms": "latency (64)",
    "blocks": "network",
}
_SHARES = re.compile(r"(score|\w+_score|\w+_top\d+)(_mean|_low|_high|_repeats)?")
"""Columns that are shown in percent, beside those named after the score."""


def show_trials(
    console: Console, trials: pd.DataFrame, title: str, score_name: str, columns: Sequence[str] | None = None
) -> None:
    """Print rows of a study: these columns, or those that people look at first, with the score under its own name.

    Without `columns`, rows that know over how many `seeds` they were measured show the mean as their score.
    """
    if trials.empty:
        console.print(title, markup=False, highlight=False)
        return
    names = _default_columns(trials, score_name) if columns is None else list(dict.fromkeys(columns))
    table = Table(title=title, title_justify="left", show_lines="blocks" in names)
    for name in names:
        left = name in ("trial", "status", "blocks")
        table.add_column(_HEADERS.get(name, name), justify="left" if left else "right", no_wrap=name == score_name)
    for record in trials.to_dict("records"):
        row = {str(name): value for name, value in record.items()}
        if columns is None and "seeds" in row:
            row[score_name] = format_score(row)
        table.add_row(*(Text(encodable(_cell(name, row[name], score_name), console.encoding)) for name in names))
    print_table(console, table)
    if columns is None and (place := _latency_places(trials)):
        console.print(f"latency in {place}", markup=False, highlight=False, soft_wrap=True)


def show_answer(console: Console, answer: Answer) -> None:
    """Print an answer in SQL: all values as they are, with nothing rounded or cut."""
    table = Table()
    for field in answer.table.schema:
        number = any(check(field.type) for check in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal))
        table.add_column(
            Text(encodable(field.name, console.encoding)), justify="right" if number else "left", overflow="fold"
        )
    for row in texts(answer):
        table.add_row(*(Text(encodable("NULL" if text is None else text, console.encoding)) for text in row))
    print_table(console, table)


def format_score(row: Mapping[str, Any]) -> str:
    """Return the mean over a row's seeds with its 95 % interval: `97.50% ±0.41 (n=4)`, or `97.50% (1 seed)`."""
    if row["seeds"] < 2:
        return f"{row['score_mean']:.2%} (1 seed)"
    half = max(row["score_high"] - row["score_mean"], row["score_mean"] - row["score_low"])
    return f"{row['score_mean']:.2%} ±{100 * half:.2f} (n={row['seeds']:.0f})"


def _default_columns(trials: pd.DataFrame, score_name: str) -> list[str]:
    """Return the columns that tell trials apart, of those that people look at first."""
    sketched = "status" in trials and (trials["status"] == "sketch").any()
    scores = (score_name, init_name(score_name)) if sketched else (score_name,)
    first = ("trial", "status", *scores, "probability_dominated", "size_bytes", "flops")
    then = ("latency_ms", "latency_b64_ms", "epochs_run", "blocks")
    names = [name for name in (*first, *then) if name in trials and not trials[name].isna().all()]
    if "status" in names and (trials["status"] == "finished").all():
        names.remove("status")
    if "epochs_run" in names and trials["epochs_run"].nunique() == 1:
        names.remove("epochs_run")
    return names


_PLACE = ("latency_runtime", "latency_threads", "latency_device")


def _latency_places(trials: pd.DataFrame) -> str:
    """Return where the latencies were taken, '' if there are none."""
    if not {"latency_ms", *_PLACE} <= set(trials.columns):
        return ""
    taken = trials[trials["latency_runtime"].notna()][list(_PLACE)].astype(object).drop_duplicates()
    places = [
        format_place(runtime, None if pd.isna(threads) else int(threads), device)
        for runtime, threads, device in taken.itertuples(index=False)
    ]
    return " and in ".join(places)


def _cell(name: str, value: Any, score_name: str) -> str:
    if name == "blocks":
        return format_network([dict(block) for block in value], "\n")
    if name == "history":
        return f"{len(value)} epochs"
    if name == "metrics":
        known = sorted((metric, number) for metric, number in dict(value).items() if number is not None)
        return ", ".join(f"{metric} {number:.4g}" for metric, number in known)
    if pd.isna(value):
        return "-"
    if isinstance(value, str):
        return value
    if name == "size_bytes":
        return format_kilobytes(value)
    if name == "flops":
        return format_flops(value)
    if name in ("latency_ms", "latency_b64_ms"):
        return f"{value:.3g} ms"
    if name == "predicted_loss_increase":
        return f"{value:+.3f}"
    if name == "probability_dominated":
        return f"{value:.1%}"
    if name.startswith(score_name) or name == init_name(score_name) or _SHARES.fullmatch(name):
        return f"{value:.2%}"
    return str(value)
