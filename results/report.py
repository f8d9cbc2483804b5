"""The report of a study: one HTML file that opens anywhere without a network, or a still picture of its front."""

import os
import shlex
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
from plotly.offline import get_plotlyjs

from layers.errors import UsageError
from results.figures import history_figure, scatter_figure
from results.ledger import Ledger
from results.network import block_text, network_text
from results.page import page, table
from results.picture import write_picture
from results.schema import TrialStatus
from results.store import Store
from results.summary import Summary, summarise
from results.units import figures_text, percent

__all__ = ["write_report"]

_SHOWN_FAILURES = 20
_CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d"],
    "plotlyServerURL": "",
    "showSendToCloud": False,  # the page never talks to anyone
}


def write_report(ledger: Ledger, study: str, out: str | os.PathLike[str]) -> Path:
    """Writes a study's report, whole or not at all, and gives back its path.

    `.html` is the page with interactive pictures and the front as a table; `.png` and `.svg` are the still picture
    (`write_picture`); another ending is a UsageError.
    """
    path = Path(out)
    if path.suffix in (".png", ".svg"):
        return write_picture(ledger, study, path)
    if path.suffix != ".html":
        raise UsageError(f"out (={os.fspath(out)!r}) must end in .html, .png or .svg")
    summary = summarise(ledger, study)
    text = page(title=f"Overtone: {study}", body="\n".join(_body(summary)), scripts=[get_plotlyjs()])
    Store(path.parent).write_bytes(path.name, text.encode())
    return path


def _body(summary: Summary) -> Iterator[str]:
    model, dataset = (escape(str(summary.record.get(key, "?"))) for key in ("model", "dataset"))
    yield f"<h1>{escape(summary.study)}</h1>"
    yield f'<p class="lead soft">Trade-offs that {model} on {dataset} can be compressed to.</p>'
    yield _facts(summary)
    if summary.finished.num_rows:
        yield from _pictures(summary)
        yield from _front_table(summary)
    else:
        yield "<p>No trial has finished yet, so there is no front to show.</p>"
    yield from _failures(summary)


def _facts(summary: Summary) -> str:
    record = summary.record
    counts = ", ".join(f"{summary.count(status)} {status.value}" for status in TrialStatus)
    seeds = sorted({seed for seed in summary.trials.column("seed").to_pylist() if seed is not None})
    epochs = sorted({value for value in summary.trials.column("epochs").to_pylist() if value is not None})
    facts = {
        "model": record.get("model", "?"),
        "dataset": record.get("dataset", "?"),
        "objectives": ", ".join(f"{objective.name} ({objective.direction})" for objective in summary.objectives),
        "trials": counts,
        "front": f"{summary.front.num_rows} networks",
        "training seeds": ", ".join(map(str, seeds)) or "-",
        "epochs a trial": ", ".join(map(str, epochs)) or "-",
        "uncompressed": figures_text(summary.baseline) or "-",
        "hypervolume": f"{summary.hypervolume:.4f}",
        "study begun": str(record.get("created_at", "?"))[:16].replace("T", " "),
    }
    items = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(str(value))}</dd></div>" for key, value in facts.items())
    return f'<dl class="facts">{items}</dl>'


def _pictures(summary: Summary) -> Iterator[str]:
    yield (
        '<p class="note">Every accuracy here is <code>val_top1</code>: measured on the validation split, after one '
        "training run of a single seed. Differences of a few images are noise, and the best of many trials looks "
        "better than it is.</p>"
    )
    yield "<h2>The front</h2>"
    yield '<div class="pair">'
    size = "Accuracy against the packed file's size. Blue points are those that no trial beats in all objectives."
    flops = "The same trials against the arithmetic of one image's forward pass. The dotted line joins the best here."
    yield _figure(scatter_figure(summary, "size_bytes"), f"{size} Point at one to see its network.")
    yield _figure(scatter_figure(summary, "flops"), flops)
    yield "</div><h2>How the search went</h2>"
    history = (
        f"Hypervolume: the share of the space between the reference ({figures_text(summary.reference)}) and the ideal "
        "(full accuracy for free) that the trials so far cover."
    )
    yield _figure(history_figure(summary), history)


def _figure(figure: go.Figure, caption: str) -> str:
    drawing = pio.to_html(figure, config=_CONFIG, include_plotlyjs=False, full_html=False)
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def _front_table(summary: Summary) -> Iterator[str]:
    latency = any(value is not None for value in summary.front.column("latency_ms").to_pylist())
    head = [("trial", ""), ("val_top1", "number"), ("size (kB)", "number"), ("MFLOPs", "number")]
    head += [("ms", "number")] if latency else []
    head += [("network", "network"), ("export", "command")]
    rows = [_front_row(summary, row, latency) for row in summary.front.to_pylist()]
    yield f'<h2 id="front">The front, smallest first: {len(rows)} networks</h2>'
    yield table(label="The front, smallest first", head=head, rows=rows)


def _front_row(summary: Summary, row: Mapping[str, Any], latency: bool) -> list[str]:
    knee = summary.knee is not None and row["trial"] == summary.knee["trial"]
    milliseconds = row["latency_ms"]
    cells = [
        f"<code>{escape(row['trial'])}</code>" + ('<span class="badge">knee</span>' if knee else ""),
        escape(percent(row["val_top1"])),
        f"{row['size_bytes'] / 1e3:,.2f}" + _saving(summary.baseline.get("size_bytes"), row["size_bytes"]),
        f"{row['flops'] / 1e6:,.3f}" + _saving(summary.baseline.get("flops"), row["flops"]),
    ]
    cells += ["-" if milliseconds is None else f"{milliseconds:.3g}"] if latency else []
    return [*cells, _network(row), _command(summary, row)]


def _saving(baseline: float | None, value: float) -> str:
    if not baseline or not value or baseline <= value:
        return ""
    return f' <span class="soft saving">{baseline / value:.1f}x less</span>'


def _network(row: Mapping[str, Any]) -> str:
    blocks = row["blocks"]
    changed = [block for block in blocks if network_text([block]) != "uncompressed"]
    if not changed:
        return "uncompressed"
    items = "".join(f"<li>{escape(block_text(block))}</li>" for block in blocks)
    title = f"{len(changed)} block{'' if len(changed) == 1 else 's'} compressed"
    return f'<details><summary>{title}</summary><ul class="blocks">{items}</ul></details>'


def _command(summary: Summary, row: Mapping[str, Any]) -> str:
    if row["model_sha256"] is None:
        return "its model was not kept"
    parts = ["overtone", "export", "--study", summary.study, "--store", summary.store, "--pick", row["trial"]]
    parts += ["--format", "safetensors", "--out", f"{summary.study}-{row['trial']}"]
    shown = f"<details><summary>command</summary><code>{escape(shlex.join(parts))}</code></details>"
    return f'<button type="button" data-copy>copy</button> {shown}'


def _failures(summary: Summary) -> Iterator[str]:
    failed = [row for row in summary.trials.to_pylist() if row["status"] == TrialStatus.FAILED]
    if not failed:
        return
    yield f"<h2>Trials that failed: {len(failed)}</h2>"
    rows = [[f"<code>{escape(row['trial'])}</code>", escape(row["error"] or "?")] for row in failed[:_SHOWN_FAILURES]]
    yield table(label="Trials that failed", head=[("trial", ""), ("error", "")], rows=rows)
    if len(failed) > len(rows):
        yield f'<p class="soft">{len(failed) - len(rows)} more are in the ledger: query them with --where.</p>'
