"""The terminal: its consoles, an answer as a line or as JSON, and the lines that commands end with."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.formatting import format_duration, format_flops, format_kilobytes, format_place
from results.objectives import init_name
from search.study.plan import DEFAULT_STORE

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from search.runner.confirm import RepeatResult
    from search.runner.launch import SearchResult

__all__ = [
    *(
        "bench_lines",
        "confirm_line",
        "err_console",
        "export_line",
        "format_values",
        "out_console",
        "print_answer",
        "print_json",
    ),
    *("print_line", "print_table", "search_line", "status_line"),
]

_UNBOUNDED = 100_000
"""Columns of a terminal on which every table fits."""


def out_console() -> Console:
    """Return the console of standard output, wide where that is no terminal and COLUMNS does not say how wide."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140)


def err_console() -> Console:
    """Return the console of standard error."""
    from rich.console import Console

    return Console(stderr=True)


def print_answer(answer: Mapping[str, Any], line: str, as_json: bool) -> None:
    """Print the answer of a command as JSON, or as a line."""
    if as_json:
        print_json(answer)
    else:
        print_line(line)


def print_json(answer: Mapping[str, Any]) -> None:
    """Print the answer of a command for a script to read."""
    print(json.dumps(answer, indent=2, default=str))


def print_line(line: str) -> None:
    """Print a line as it is, however wide the terminal."""
    out_console().print(line, markup=False, highlight=False, soft_wrap=True)


def print_table(console: Console, table: Table) -> None:
    """Print a table; where its words do not fit side by side, print each row as lines of a column's name and value."""
    from rich.measure import Measurement
    from rich.table import Table

    needed = Measurement.get(console, console.options.update(width=_UNBOUNDED), table).minimum
    if needed <= console.width or not table.row_count:
        console.print(table)
        return
    console.print(table.title or "", markup=False, highlight=False)
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        record = Table.grid(padding=(0, 1))
        for column, cell in zip(table.columns, cells, strict=True):
            if str(cell):
                record.add_row(column.header, cell)
        console.print("", record, sep="\n")
    console.print(table.caption or "", markup=False, highlight=False)


def format_values(values: Sequence[Any]) -> str:
    """Return the values of a knob with bars between them; `None` is none."""
    return "|".join("none" if value is None else str(value) for value in values)


def export_line(out: Path, card: Mapping[str, Any]) -> str:
    """Return what was exported, and how it was verified, in a line."""
    differing, n, name = card["differing"], card["val_n"], card["score_name"]
    sketch = card.get("status") == "sketch"
    score = f"{init_name(name)} {card['init_score']:.4f}" if sketch else f"{name} {card['score']:.4f}"
    kind = "sketch, calibrated and never trained," if sketch else "trial"
    same = f"for {n - differing} of {n}" if differing else f"for all {n}"
    test_name = f"test_{name.removeprefix('val_')}"
    return (
        f"{out}: {kind} {card['trial']}, {format_kilobytes(card['size_bytes'])}, {format_flops(card['flops'])}, "
        f"{score}, {test_name} {card['test_metrics'][test_name]:.4f} (n = {card['test_n']}); "
        f"the exported file gives the trial's class {same} validation images{_bench_clause(card.get('bench'))}"
        f"{'; it emulates activation_bits in floating point' if card.get('emulated') else ''}"
    )


def _bench_clause(bench: Mapping[str, Any] | None) -> str:
    """Return what an export and the uncompressed network's file take, '' if they were not timed."""
    if bench is None:
        return ""
    this, whole = bench["file"], bench["uncompressed"]
    sizes = f"{format_kilobytes(this['bytes'])} (uncompressed {format_kilobytes(whole['bytes'])})"
    times = ", ".join(
        f"{ms:.3g} ms at batch {batch} (uncompressed {whole['latency_ms'][batch]:.3g})"
        for batch, ms in this["latency_ms"].items()
    )
    return f"; it has {sizes} and takes {times} in {format_place(bench['runtime'], bench['threads'], bench['device'])}"


def bench_lines(answer: Mapping[str, Any]) -> list[str]:
    """Return what `trainers.runtime.bench` measured: a line a file, how the two compare, and where it was."""
    lines = []
    for file in answer["files"]:
        times = ", ".join(f"{ms:.3g} ms at batch {batch}" for batch, ms in file["latency_ms"].items())
        lines.append(f"{file['file']}: {format_kilobytes(file['bytes'])}, {times} in {file['runtime']}")
    for batch, ratio in answer["ratios"].items():
        interval = f"95 % interval {ratio['low']:.2f} to {ratio['high']:.2f}, n = {answer['rounds'][batch]} rounds"
        lines.append(f"batch {batch}: {ratio['ratio']:.2f} x the time of {answer['files'][1]['file']} ({interval})")
    versions = ", ".join(f"{name} {version}" for name, version in answer["versions"].items())
    threads = f"{answer['threads']} thread{'' if answer['threads'] == 1 else 's'}"
    return [*lines, f"{answer['device']}, {threads}, {versions}; medians"]


def search_line(study: str, store: str, result: SearchResult) -> str:
    """Return how a search ended and the command that continues it; `store` is its label, which holds no credentials."""
    resume = f"overtone resume --study {study}"
    at = "" if store == DEFAULT_STORE else f" --store {shlex.quote(store)}"
    if result.exhausted:
        return f"{result.done} trials done, the space holds no further network"
    if result.done < result.wanted:
        return f"stopped at {result.done} of {result.wanted} trials; continue with: {resume}{at}"
    return f"all {result.wanted} trials done; run more with: {resume} --more {result.wanted}{at}"


def confirm_line(study: str, result: RepeatResult) -> str:
    """Return how a confirmation ended, in a line."""
    trials = f"{len(result.trials)} trial{'' if len(result.trials) == 1 else 's'}"
    if result.done == result.wanted:
        return f"all {result.wanted} repeats of {trials} of {study} done"
    failed = f", {result.failed} failed" if result.failed else ""
    return f"{result.done} of {result.wanted} repeats of {trials} of {study} done{failed}; the same command continues"


def status_line(status: Mapping[str, Any]) -> str:
    """Return the state of a study, as `overtone status` knows it, in a line."""
    left = "" if status["seconds_left"] is None else f", {format_duration(status['seconds_left'])} left"
    sketches = f", {status['sketches']} sketched" if status["sketches"] else ""
    effects = f"; effects measured in {format_duration(status['effects_s'])}" if status["effects_s"] else ""
    return (
        f"{status['study']}: {status['state']}; {status['finished']} finished, {status['failed']} failed, "
        f"{status['pruned']} pruned, {status['running']} running of {status['wanted']}{left}{sketches}; "
        f"front {status['front']} ({_seeds(status)}), hypervolume {status['hypervolume']:.4f}{effects}"
    )


def _seeds(status: Mapping[str, Any]) -> str:
    alone = status["front"] - status["confirmed"]
    repeated = f"{status['confirmed']} over several seeds" if status["confirmed"] else ""
    single = f"{alone} of a single seed" if alone or not repeated else ""
    return ", ".join(part for part in (repeated, single) if part)
