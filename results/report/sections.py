"""The report's page, section by section: finished HTML that the page's scripts fill and draw."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from results.analysis.summary import Summary
from results.formatting import (
    format_flops,
    format_kilobytes,
    format_metrics,
    format_network,
    format_place,
    percent,
)
from results.objectives import init_name
from results.report.data import ReportData
from results.report.effects_section import effects_section
from results.report.page import table, web_file
from results.report.published import PlacedResult, published_beside
from results.schema import TrialStatus, to_records

__all__ = ["sections"]

_SHOWN_FAILURES = 20


def sections(summary: Summary, data: ReportData, effects: Mapping[str, Any] | None = None) -> Iterator[str]:
    """Yield the body of the page, top to bottom; `effects` are those of `results.analysis.effects_table`."""
    name = escape(summary.score_name)
    yield '<a class="skip" href="#front">Skip to the front</a>\n<main>'
    yield from _title(summary)
    yield _facts(summary, data)
    if summary.finished.num_rows:
        yield "<noscript><p class='note'>The pictures and tables of this page need JavaScript.</p></noscript>"
        yield _certainty(data)
        yield web_file("front.html").replace("{score_name}", name)
        yield _sketches(summary)
        yield _published(published_beside(summary))
        yield web_file("history.html").replace("{reference}", escape(_reference(summary)))
        yield web_file("knobs.html")
        yield web_file("importance.html").replace("{score_name}", name) if data["importance"]["effects"] else ""
        yield effects_section(effects) if effects else ""
        yield web_file("table.html")
    else:
        yield "<p>No trial has finished yet, so there is no front to show.</p>"
        yield _sketches(summary)
    yield from _failures(summary)
    yield '</main>\n<div class="toast" id="toast" role="status" aria-live="polite"></div>'
    yield '<div class="tip" id="tip" hidden></div>'


def _reference(summary: Summary) -> str:
    return format_metrics({objective.column: summary.reference[objective.name] for objective in summary.objectives})


def _title(summary: Summary) -> Iterator[str]:
    model, dataset = (escape(str(summary.record.get(key, "?"))) for key in ("model", "dataset"))
    yield f"<header><div><h1>{escape(summary.study)}</h1>"
    yield f'<p class="lead soft">Compression trade-offs of {model} on {dataset}.</p></div>'
    yield '<button type="button" id="theme" hidden>Dark</button></header>'


def _facts(summary: Summary, data: ReportData) -> str:
    record = summary.record
    ended = (status for status in TrialStatus if status != TrialStatus.SKETCH)
    counts = ", ".join(f"{summary.count(status)} {status.value}" for status in ended)
    seeds = sorted({seed for seed in summary.trials.column("seed").to_pylist() if seed is not None})
    epochs = sorted({value for value in summary.trials.column("epochs").to_pylist() if value is not None})
    facts = {
        "model": record.get("model", "?"),
        "dataset": record.get("dataset", "?"),
        "objectives": ", ".join(f"{objective.name} ({objective.direction})" for objective in summary.objectives),
        "trials": counts,
        **({"sketches": f"{summary.sketches.num_rows}, never trained"} if summary.sketches.num_rows else {}),
        "front": _networks(summary.front.num_rows),
        "training seeds": _few(seeds),
        "repeated with other seeds": f"{_repeated(data)} of the front",
        "epochs per trial": _few(epochs),
        "uncompressed": format_metrics(summary.baseline) or "-",
        **_latency_facts(summary),
        "hypervolume": f"{summary.hypervolume:.4f}",
        "study created": str(record.get("created_at", "?"))[:16].replace("T", " "),
    }
    items = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(str(value))}</dd></div>" for key, value in facts.items())
    return f'<dl class="facts">{items}</dl>'


def _latency_facts(summary: Summary) -> dict[str, str]:
    """Return where latency was taken, if it was."""
    columns = ["latency_runtime", "latency_threads", "latency_device"]
    places = {tuple(row.values()) for row in summary.trials.select(columns).to_pylist() if row["latency_runtime"]}
    return {"latency": " and in ".join(sorted(format_place(*place) for place in places))} if places else {}


def _repeated(data: ReportData) -> int:
    return sum(member["seeds"] > 1 for member in data["front"])


def _few(values: list[int]) -> str:
    text = ", ".join(map(str, values[:8])) or "-"
    return text if len(values) <= 8 else f"{text} and {len(values) - 8} more"


def _certainty(data: ReportData) -> str:
    name = escape(data["score_name"])
    start = f"Every score on this page is <code>{name}</code>, measured on the validation split after one training run"
    if not _repeated(data):
        return (
            f'<p class="note">{start} of a single seed. Differences of a few images are noise, and the best of many '
            "trials looks better than it is. <code>overtone confirm</code> repeats the front with other seeds.</p>"
        )
    return (
        f'<p class="note">{start}. Trials that were repeated with other seeds also show their mean and its 95 % '
        "interval. Hollow points and the mark <em>single seed</em> stand for trials that were not.</p>"
    )


def _sketches(summary: Summary) -> str:
    rows = to_records(summary.sketches.sort_by("size_bytes"))
    if not rows:
        return ""
    name = escape(summary.score_name)
    head = [("sketch", ""), (init_name(summary.score_name), "number"), ("size", "number"), ("compute", "number")]
    return (
        f'<details class="published"><summary>Sketched, never trained: {_networks(len(rows))}</summary>'
        f'<p class="note">Built and calibrated, and measured before any training: their <code>{name}</code> is no '
        "trial's, and no other figure of this page knows them.</p>"
        + table(label="Sketches", head=[*head, ("network", "text")], rows=[_sketch_cells(row) for row in rows])
        + "</details>"
    )


def _networks(count: int) -> str:
    return f"{count} network{'' if count == 1 else 's'}"


def _sketch_cells(row: Mapping[str, Any]) -> list[str]:
    costs = percent(row["init_score"]), format_kilobytes(row["size_bytes"]), format_flops(row["flops"])
    return [f"<code>{escape(row['trial'])}</code>", *costs, escape(format_network(row["blocks"], "\n"))]


def _published(placed: Sequence[PlacedResult]) -> str:
    if not placed:
        return ""
    results = [result for result, _ in placed]
    source = (
        "counted from the configuration, in 32-bit floats"
        if all(result.counted for result in results)
        else "as printed; the size is the printed share of parameters"
    )
    head = [("paper", ""), ("configuration", ""), ("published top-1", "number"), ("its baseline", "number")]
    head += [("size kept", "number"), ("FLOPs kept", "number"), ("placed here at", "")]
    return (
        f'<details class="published"><summary>Published for this model elsewhere: {len(placed)} rows</summary>'
        f'<p class="note">Published on other training data ({escape(results[0].data)}), from other weights, with top-1 '
        "accuracy on a test set. Each row is placed by what it changed: the published loss of accuracy is taken off "
        f"this study's own baseline, and so is the published share of its costs ({source}). Compare the trade-offs, "
        "not the measurements.</p>"
        + table(label="Published rows", head=head, rows=[_published_cells(row) for row in placed])
        + "</details>"
    )


def _published_cells(placed: PlacedResult) -> list[str]:
    row = placed.result
    return [
        *(escape(text) for text in (row.paper, row.name)),
        *(f"{value:.2f} %" for value in (row.score, row.baseline_score)),
        *(f"{100 * share:.1f} %" for share in (row.size, row.flops)),
        escape(format_metrics(placed.at) or "-"),
    ]


def _failures(summary: Summary) -> Iterator[str]:
    failed = [row for row in summary.trials.select(["trial", "status", "error"]).to_pylist() if _failed(row)]
    if not failed:
        return
    yield f"<h2>Trials that failed: {len(failed)}</h2>"
    rows = [[f"<code>{escape(row['trial'])}</code>", escape(row["error"] or "?")] for row in failed[:_SHOWN_FAILURES]]
    yield table(label="Trials that failed", head=[("trial", ""), ("error", "text")], rows=rows)
    if len(failed) > len(rows):
        yield f'<p class="soft">{len(failed) - len(rows)} more are in the ledger: query them with --where.</p>'


def _failed(row: Mapping[str, Any]) -> bool:
    return bool(row["status"] == TrialStatus.FAILED)
