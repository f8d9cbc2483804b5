"""What the commands say on a terminal: tables, and where a study stands in a line."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from results.formatting_network import format_network
from search.commands.survey import Survey
from search.runner.progress import duration
from trainers.estimate import TrialEstimate

if TYPE_CHECKING:
    from search.runner.confirm import RepeatResult
    from search.runner.launch import SearchResult

__all__ = [
    "accuracy",
    "confirm_line",
    "err_console",
    "export_line",
    "kilobytes",
    "megabytes",
    "megaflops",
    "next_step",
    "out_console",
    "print_json",
    "say",
    "show_survey",
    "show_trials",
    "status_line",
    "words",
]

out_console = Console(width=None if sys.stdout.isatty() else 140)
err_console = Console(stderr=True)

_COLUMNS = (
    *("trial", "status", "val_top1", "probability_dominated", "size_bytes", "flops", "latency_ms", "latency_b64_ms"),
    *("epochs_run", "blocks"),
)
_HEADERS = {
    "probability_dominated": "P(dominated)",
    "size_bytes": "size",
    "flops": "compute",
    "latency_ms": "latency",
    "latency_b64_ms": "latency (64)",
    "blocks": "network",
}


def say(found: dict[str, Any], line: str, as_json: bool) -> None:
    """Answer a command: in a line, or with all that was found as JSON."""
    if as_json:
        print_json(found)
    else:
        out_console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_json(found: dict[str, Any]) -> None:
    """Answer a command where a script reads it."""
    print(json.dumps(found, indent=2, default=str))


def export_line(out: Path, card: Mapping[str, Any]) -> str:
    """What was exported, and how it was proven, in a line."""
    differing, n = card["differing"], card["val_n"]
    same = f"for {n - differing} of {n}" if differing else f"for all {n}"
    return (
        f"{out}: trial {card['trial']}, {kilobytes(card['size_bytes'])}, {megaflops(card['flops'])}, "
        f"val_top1 {card['val_top1']:.4f}, test_top1 {card['test_top1']:.4f} (n = {card['test_n']}); "
        f"the exported file gives the trial's class {same} validation images"
    )


def show_survey(console: Console, survey: Survey, title: str) -> None:
    """The blocks of a network and what each can take, then the papers' rows, a table a source."""
    table = Table(title=title, title_justify="left")
    for column in ("block", "layers", "size", "compute", "choices"):
        table.add_column(column, justify="right" if column in ("layers", "size", "compute") else "left")
    for block in survey.blocks:
        choices = "; ".join(f"{knob} {words(values)}" for knob, values in block["choices"].items())
        table.add_row(
            block["block"],
            str(len(block["layers"])),
            kilobytes(block["size_bytes"]),
            megaflops(block["flops"]),
            choices,
        )
    console.print(table)
    for source in dict.fromkeys(preset["source"] for preset in survey.presets):
        console.print(_preset_table(source, [preset for preset in survey.presets if preset["source"] == source]))
    whole, least = survey.uncompressed, survey.least
    lines = [
        f"space: {survey.space_size:.3g} points, several of which can be one network",
        f"size: {kilobytes(whole['size_bytes'])} uncompressed, down to {kilobytes(least['size_bytes'])}",
        f"compute: {megaflops(whole['flops'])} uncompressed, down to {megaflops(least['flops'])}",
        f"parameters: {whole['parameters']:,} uncompressed",
    ]
    if survey.trial is not None:
        lines += _trial_lines(survey.trial, survey.trial_flops)
    console.print("\n".join(lines), highlight=False)


def _trial_lines(trial: TrialEstimate, flops: int) -> list[str]:
    """Seconds, bytes and arithmetic of a trial, then what they are made of."""
    threads = f" ({trial.threads} thread{'' if trial.threads == 1 else 's'})" if trial.device == "cpu" else ""
    parts = ("weights", "gradients", "optimizer", "activations", "validation", "images")
    memory = ", ".join(f"{part} {megabytes(getattr(trial, f'{part}_bytes'))}" for part in parts)
    return [
        f"a trial: about {duration(trial.seconds)} on {trial.device}{threads}, {megabytes(trial.memory_bytes)}, "
        f"up to {flops / 1e9:,.1f} GFLOPs of fine-tuning",
        f"  time: training {duration(trial.training_s)}, validation {duration(trial.validation_s)}; the start is extra",
        f"  memory: {memory}",
    ]


def _preset_table(source: str, presets: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=source, title_justify="left")
    table.add_column("preset", no_wrap=True)
    for column in ("parameters", "size", "compute", "published top-1"):
        table.add_column(column, justify="right")
    for preset in presets:
        table.add_row(
            preset["name"],
            f"{preset['percent_parameters']:.2f}%",
            f"{kilobytes(preset['size_bytes'])} ({preset['percent_size']:.1f}%)",
            f"{megaflops(preset['flops'])} ({preset['percent_flops']:.1f}%)",
            _published(preset),
        )
    return table


def _published(preset: Mapping[str, Any]) -> str:
    """Accuracy, and its difference from the uncompressed network's, in percent; `-` where none is published."""
    top1, base = preset["published_top1"], preset["published_base"]
    return "-" if top1 is None else f"{top1:.2f} ({top1 - base:+.2f})"


def show_trials(console: Console, frame: pd.DataFrame, title: str, columns: Sequence[str] | None = None) -> None:
    """Rows of the ledger, the columns that people look at first or those named.

    Where the rows say over how many seeds they were measured (`seeds`), so does their accuracy, which then is the mean.
    """
    if frame.empty:
        console.print(title, markup=False, highlight=False)
        return
    names = _shown(frame) if columns is None else list(dict.fromkeys(columns))
    table = Table(title=title, title_justify="left", show_lines="blocks" in names)
    for name in names:
        left = name in ("trial", "status", "blocks")
        table.add_column(_HEADERS.get(name, name), justify="left" if left else "right", no_wrap=name == "val_top1")
    for record in frame.to_dict("records"):
        row = {str(name): value for name, value in record.items()}
        sure = {**row, "val_top1": accuracy(row)} if columns is None and "seeds" in row else row
        table.add_row(*(Text(_cell(name, sure[name])) for name in names))
    console.print(table)


def accuracy(row: Mapping[str, Any]) -> str:
    """The mean over a row's seeds with its 95 % interval, such as `97.50% ±0.41 (n=4)`, or `97.50% (1 seed)`."""
    if row["seeds"] < 2:
        return f"{row['val_top1_mean']:.2%} (1 seed)"
    half = max(row["val_top1_high"] - row["val_top1_mean"], row["val_top1_mean"] - row["val_top1_low"])
    return f"{row['val_top1_mean']:.2%} ±{100 * half:.2f} (n={row['seeds']:.0f})"


def _shown(frame: pd.DataFrame) -> list[str]:
    """The columns that say something, of those that people look at first."""
    names = [name for name in _COLUMNS if name in frame and not frame[name].isna().all()]
    if "status" in names and (frame["status"] == "finished").all():
        names.remove("status")
    if "epochs_run" in names and frame["epochs_run"].nunique() == 1:
        names.remove("epochs_run")
    return names


def next_step(study: str, store: str, outcome: SearchResult) -> str:
    """How a study ended, and the command that goes on with it; `store` as it may be shown."""
    resume = f"overtone resume --study {study}"
    at = "" if store == "runs" else f" --store {shlex.quote(store)}"
    if outcome.exhausted:
        return f"{outcome.done} trials done, no further network was found in the space"
    if outcome.done < outcome.wanted:
        return f"stopped at {outcome.done} of {outcome.wanted} trials; go on with: {resume}{at}"
    return f"all {outcome.wanted} trials done; more with: {resume} --trials {outcome.wanted}{at}"


def confirm_line(study: str, outcome: RepeatResult) -> str:
    """How a confirmation ended, in a line."""
    trials = f"{len(outcome.trials)} trial{'' if len(outcome.trials) == 1 else 's'}"
    if outcome.done == outcome.wanted:
        return f"all {outcome.wanted} repeats of {trials} of {study} done"
    failed = f", {outcome.failed} failed" if outcome.failed else ""
    return f"{outcome.done} of {outcome.wanted} repeats of {trials} of {study} done{failed}; the same command goes on"


def status_line(found: Mapping[str, Any]) -> str:
    """What `overtone status` found, in a line."""
    left = "" if found["seconds_left"] is None else f", {duration(found['seconds_left'])} left"
    return (
        f"{found['study']}: {found['state']}; {found['finished']} finished, {found['failed']} failed, "
        f"{found['pruned']} pruned, {found['running']} running of {found['wanted']}{left}; "
        f"front {found['front']} ({_seeds(found)}), hypervolume {found['hypervolume']:.4f}"
    )


def _seeds(found: Mapping[str, Any]) -> str:
    alone = found["front"] - found["confirmed"]
    repeated = f"{found['confirmed']} over several seeds" if found["confirmed"] else ""
    single = f"{alone} of a single seed" if alone or not repeated else ""
    return ", ".join(part for part in (repeated, single) if part)


def kilobytes(size: float) -> str:
    """Bytes as kB of 1,000."""
    return f"{size / 1e3:,.1f} kB"


def megabytes(size: float) -> str:
    """Bytes as MB of 1,000,000, above 1,000 of them as GB."""
    if size >= 1e9:
        return f"{size / 1e9:,.1f} GB"
    return f"{size / 1e6:,.1f} MB" if size < 1e7 else f"{size / 1e6:,.0f} MB"


def megaflops(flops: float) -> str:
    """Floating-point operations in millions."""
    return f"{flops / 1e6:,.2f} MFLOPs"


def words(values: Sequence[Any]) -> str:
    """Values of a knob; `None` is none."""
    return "|".join("none" if value is None else str(value) for value in values)


def _cell(name: str, value: Any) -> str:
    if name == "blocks":
        return format_network([dict(block) for block in value], "\n")
    if name == "history":
        return f"{len(value)} epochs"
    if value is None or value != value:
        return "-"
    if isinstance(value, str):
        return value
    forms: Mapping[str, str] = {
        **dict.fromkeys(("val_top1", "init_score", "val_top1_mean", "val_top1_low", "val_top1_high"), "{:.2%}"),
        **dict.fromkeys(("val_top1_repeats", "val_top5"), "{:.2%}"),
        **dict.fromkeys(("latency_ms", "latency_b64_ms"), "{:.3g} ms"),
        "probability_dominated": "{:.1%}",
    }
    if name == "size_bytes":
        return kilobytes(value)
    if name == "flops":
        return megaflops(value)
    return forms.get(name, "{}").format(value)
