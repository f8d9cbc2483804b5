"""What the commands say on a terminal: tables, and where a study stands in a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from results.network import network_text
from search.progress import duration
from search.survey import Survey

if TYPE_CHECKING:
    from search.launch import Outcome

__all__ = ["next_step", "show_survey", "show_trials", "status_line"]

_COLUMNS = ("trial", "status", "val_top1", "size_bytes", "flops", "latency_ms", "epochs_run", "blocks")


def show_survey(console: Console, survey: Survey, title: str) -> None:
    """The blocks of a network and what each can take."""
    table = Table(title=title, title_justify="left")
    for column in ("block", "layers", "size", "compute", "choices"):
        table.add_column(column, justify="right" if column in ("layers", "size", "compute") else "left")
    for block in survey.blocks:
        choices = "; ".join(f"{knob} {_words(values)}" for knob, values in block["choices"].items())
        table.add_row(
            block["block"],
            str(len(block["layers"])),
            kilobytes(block["size_bytes"]),
            megaflops(block["flops"]),
            choices,
        )
    console.print(table)
    whole, least = survey.uncompressed, survey.least
    lines = [
        f"space: {survey.space_size:.3g} points, several of which can be one network",
        f"size: {kilobytes(whole['size_bytes'])} uncompressed, down to {kilobytes(least['size_bytes'])}",
        f"compute: {megaflops(whole['flops'])} uncompressed, down to {megaflops(least['flops'])}",
        f"parameters: {whole['parameters']:,} uncompressed",
    ]
    if survey.trial_flops:
        lines.append(f"a trial: up to {survey.trial_flops / 1e9:,.1f} GFLOPs of fine-tuning")
    console.print("\n".join(lines), highlight=False)


def show_trials(console: Console, frame: pd.DataFrame, title: str) -> None:
    """Rows of the ledger, the columns that people look at first."""
    names = [name for name in _COLUMNS if name in frame and not frame[name].isna().all()]
    if "status" in names and (frame["status"] == "finished").all():
        names.remove("status")
    if "epochs_run" in names and frame["epochs_run"].nunique() == 1:
        names.remove("epochs_run")
    table = Table(title=title, title_justify="left", show_lines="blocks" in names)
    for name in names:
        header = {"size_bytes": "size", "flops": "compute", "latency_ms": "latency", "blocks": "network"}.get(
            name, name
        )
        table.add_column(header, justify="left" if name in ("trial", "status", "blocks") else "right")
    for row in frame[names].to_dict("records"):
        table.add_row(*(_cell(name, row[name]) for name in names))
    console.print(table)


def next_step(study: str, store: str, outcome: Outcome) -> str:
    """How a study ended, and the command that goes on with it."""
    resume = f"overtone resume --study {study}"
    at = "" if store == "runs" else f" --store {store}"
    if outcome.exhausted:
        return f"{outcome.done} trials done, no further network was found in the space"
    if outcome.done < outcome.wanted:
        return f"stopped at {outcome.done} of {outcome.wanted} trials; go on with: {resume}{at}"
    return f"all {outcome.wanted} trials done; more with: {resume} --trials {outcome.wanted}{at}"


def status_line(found: Mapping[str, Any]) -> str:
    """What `overtone status` found, in a line."""
    left = "" if found["seconds_left"] is None else f", {duration(found['seconds_left'])} left"
    return (
        f"{found['study']}: {found['state']}; {found['finished']} finished, {found['failed']} failed, "
        f"{found['pruned']} pruned, {found['running']} running of {found['wanted']}{left}; "
        f"front {found['front']}, hypervolume {found['hypervolume']:.4f}"
    )


def kilobytes(size: float) -> str:
    """Bytes as kB of 1,000."""
    return f"{size / 1e3:,.1f} kB"


def megaflops(flops: float) -> str:
    """Floating-point operations in millions."""
    return f"{flops / 1e6:,.2f} MFLOPs"


def _words(values: Sequence[Any]) -> str:
    return "|".join("none" if value is None else str(value) for value in values)


def _cell(name: str, value: Any) -> str:
    if name == "blocks":
        return network_text([dict(block) for block in value], "\n")
    if value is None or value != value:
        return "-"
    forms: Mapping[str, str] = {
        "val_top1": "{:.2%}",
        "latency_ms": "{:.3g} ms",
    }
    if name == "size_bytes":
        return kilobytes(value)
    if name == "flops":
        return megaflops(value)
    return forms.get(name, "{}").format(value)
