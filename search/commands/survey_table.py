"""What `overtone inspect` shows on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from results.formatting import format_duration, format_flops, format_kilobytes, format_megabytes, format_place
from search.api.survey import Survey
from search.commands.display import format_values, print_table
from trainers.estimate import TrialEstimate

__all__ = ["show_survey"]


def show_survey(console: Console, survey: Survey, title: str) -> None:
    """Print the blocks of a network and their choices, then a table of presets for each paper, then the totals."""
    table = Table(title=title, title_justify="left")
    for column in ("block", "layers", "size", "compute", "choices"):
        table.add_column(column, justify="right" if column in ("layers", "size", "compute") else "left")
    for block in survey.blocks:
        choices = "; ".join(f"{knob} {format_values(values)}" for knob, values in block["choices"].items())
        table.add_row(
            block["block"],
            str(len(block["layers"])),
            format_kilobytes(block["size_bytes"]),
            format_flops(block["flops"]),
            choices,
        )
    print_table(console, table)
    for source in dict.fromkeys(preset["source"] for preset in survey.presets):
        print_table(console, _preset_table(source, [row for row in survey.presets if row["source"] == source]))
    whole, least = survey.uncompressed, survey.least
    uncounted = f", without the products of {', '.join(survey.uncounted)}" if survey.uncounted else ""
    lines = [
        f"space: {survey.space_size:.3g} points, several of which can be one network",
        f"size: {format_kilobytes(whole['size_bytes'])} uncompressed, down to {format_kilobytes(least['size_bytes'])}",
        f"compute: {format_flops(whole['flops'])} uncompressed, down to {format_flops(least['flops'])}{uncounted}",
        f"parameters: {whole['parameters']:,} uncompressed",
    ]
    if survey.trial is not None:
        lines += _trial_lines(survey.trial, survey.trial_flops)
    if survey.latency is not None:
        lines.append(_latency_line(survey.latency))
    console.print("\n".join(lines), highlight=False)


def _latency_line(latency: Mapping[str, Any]) -> str:
    place = format_place(*(latency[f"latency_{name}"] for name in ("runtime", "threads", "device")))
    return (
        f"latency: {latency['latency_ms']:.3g} ms at batch 1 and {latency['latency_b64_ms']:.3g} ms at batch 64 "
        f"uncompressed in {place}; taking it adds about {latency['seconds']:.1f} s to a trial"
    )


def _trial_lines(trial: TrialEstimate, flops: int) -> list[str]:
    """Return the seconds, bytes and arithmetic of a trial, then their parts."""
    threads = f" ({trial.threads} thread{'' if trial.threads == 1 else 's'})" if trial.device == "cpu" else ""
    parts = ("weights", "gradients", "optimizer", "activations", "validation", "images")
    memory = ", ".join(f"{part} {format_megabytes(getattr(trial, f'{part}_bytes'))}" for part in parts)
    return [
        f"a trial: about {format_duration(trial.seconds)} on {trial.device}{threads}, "
        f"{format_megabytes(trial.memory_bytes)}, up to {flops / 1e9:,.1f} GFLOPs of fine-tuning",
        f"  time: training {format_duration(trial.training_s)}, validation {format_duration(trial.validation_s)}; "
        "compression is extra",
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
            f"{format_kilobytes(preset['size_bytes'])} ({preset['percent_size']:.1f}%)",
            f"{format_flops(preset['flops'])} ({preset['percent_flops']:.1f}%)",
            _published(preset),
        )
    return table


def _published(preset: Mapping[str, Any]) -> str:
    """Return the accuracy and its difference from the uncompressed network's in percent, `-` if none is published."""
    top1, base = preset["published_top1"], preset["published_base"]
    return "-" if top1 is None else f"{top1:.2f} ({top1 - base:+.2f})"
