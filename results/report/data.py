"""Everything that the report's page shows, as plain JSON: columns of all trials, and what was computed from them.

`ReportData` is the contract between this module and the scripts in `web/`. They read all of it and nothing else, which
a test holds. A change that older scripts would misread raises `FORMAT`, which the scripts check.
"""

import shlex
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from results.analysis.convergence import anytime_hypervolume
from results.analysis.summary import Summary
from results.formatting import cost_axis, format_block, format_metrics, unit_name
from results.report.encoding import encode_configs
from results.report.published import PlacedResult, published_beside
from results.schema import to_records

__all__ = ["FORMAT", "ReportData", "report_data"]

FORMAT: Final = 1
"""Version of the contract."""

_COSTS = ("size_bytes", "flops", "latency_ms", "latency_b64_ms", "parameters")
_DIGITS = {"score": 6, "latency_ms": 5, "latency_b64_ms": 4, "total_s": 2}
"""Decimals on the page: a score over a million images still counts every image."""


class Axis(TypedDict):
    """A cost that some trial has measured."""

    key: str
    """Its column."""
    title: str
    unit: float
    """Size of the axis's unit in the column's unit."""
    short: str
    """The unit as it follows a number."""


class Member(TypedDict):
    """A trial of the front, and how sure its score is."""

    index: int
    """Its index in the columns of `trials`."""
    seeds: int
    score_mean: float
    score_low: float | None
    score_high: float | None
    probability_dominated: float | None


class Landmark(TypedDict):
    """A point beside the trials."""

    at: Mapping[str, float]
    """`score` and costs, without those that are unknown."""
    lines: list[str]
    """Text that explains it."""


class Export(TypedDict):
    """The parts of the command that exports a trial, quoted for a shell."""

    command: str
    out: str
    """Start of the new folder's name, which ends in the trial's id."""
    quoted: dict[str, str]
    """Ids of trials that need quotes -> the quoted ids."""


class Importance(TypedDict):
    """Which knobs matter; knobs are called BLOCK.KNOB."""

    shares: list[dict[str, Any]]
    """`knob` and its `share` of importance, largest first."""
    stages: list[dict[str, Any]]
    """`stage` and its `share`, largest first, and its `blocks`: each a `block` and its `share`."""
    effects: list[dict[str, Any]]
    """`knob`, `value`, `n` trials that have it, and their mean `score`, `size_bytes` and `flops`."""
    shared: list[dict[str, Any]]
    """`knob`, `value`, and its share among the `front` and among `all` finished trials."""


class ReportData(TypedDict):
    """The page's data."""

    format: int
    study: str
    score_name: str
    axes: list[Axis]
    export: Export
    uncompressed: Landmark
    trials: dict[str, list[Any]]
    """Columns by name: `trial`, `number`, `status`, `seed`, `score`, the costs of `axes`, `total_s`, `model`, `error`.

    `model` says how an export gets the trial's model: `stored`, `rerun` (it would be trained again), or null (it left
    none). `error` is an index into `errors`, as many trials fail alike, or -1.
    """
    networks: dict[str, Any]
    """What `encode_configs` returns."""
    front: list[Member]
    knee: int | None
    """Index of a trial."""
    history: dict[str, list[Any]]
    """What `anytime_hypervolume` returns."""
    published: list[Landmark]
    sketches: list[Landmark]
    """Configs that were calibrated and never trained, at their score before any training."""
    importance: Importance


def report_data(
    summary: Summary,
    confidence: Mapping[str, Mapping[str, Any]],
    models: Collection[str],
    importance: Mapping[str, Any],
) -> ReportData:
    """Return the page's data.

    `confidence` is what `results.analysis.summary.confidence_by_trial` returns, `importance` what
    `results.analysis.importance.importance` returns, and `models` are the SHA-256 of the packed models in the store.
    """
    table, record = summary.trials, summary.record
    axes = [_axis(name) for name in _COSTS if table.column(name).null_count < table.num_rows]
    trials = table.column("trial").to_pylist()
    index_of = {trial: index for index, trial in enumerate(trials)}
    baseline = {name: summary.baseline[name] for name in ("score", *_COSTS) if name in summary.baseline}
    return {
        "format": FORMAT,
        "study": summary.study,
        "score_name": summary.score_name,
        "axes": axes,
        "export": _export(summary, trials),
        "uncompressed": {"at": baseline, "lines": ["uncompressed", format_metrics(baseline)]},
        "trials": _columns(table, [axis["key"] for axis in axes], models),
        "networks": encode_configs(
            table.column("blocks"), record.get("choices") or (), record.get("granularity", "stage")
        ),
        "front": [_member(index_of[trial], row) for trial, row in confidence.items()],
        "knee": None if summary.knee is None else index_of[summary.knee["trial"]],
        "history": anytime_hypervolume(summary),
        "published": [{"at": placed.at, "lines": _published_lines(placed)} for placed in published_beside(summary)],
        "sketches": [_sketch(row) for row in to_records(summary.sketches)],
        "importance": _importance(importance),
    }


def _axis(cost: str) -> Axis:
    title, unit = cost_axis(cost)
    return {"key": cost, "title": title, "unit": unit, "short": unit_name(cost)}


def _export(summary: Summary, trials: Iterable[str]) -> Export:
    command = ["overtone", "export", "--study", summary.study, "--store", summary.store, "--format", "safetensors"]
    return {
        "command": shlex.join(command),
        "out": shlex.quote(f"{summary.study}-"),
        "quoted": {trial: quoted for trial in trials if (quoted := shlex.quote(trial)) != trial},
    }


def _columns(table: pa.Table, costs: Iterable[str], models: Collection[str]) -> dict[str, list[Any]]:
    columns = {name: table.column(name).to_pylist() for name in ("trial", "number", "status", "seed")}
    columns |= {name: _rounded(table.column(name), name) for name in ("score", *costs, "total_s")}
    errors = pc.dictionary_encode(table.column("error").combine_chunks())
    columns["error"] = pc.fill_null(errors.indices, -1).to_pylist()
    columns["errors"] = errors.dictionary.to_pylist()
    columns["model"] = [_model(digest, models) for digest in table.column("model_sha256").to_pylist()]
    return columns


def _model(digest: str | None, models: Collection[str]) -> str | None:
    if digest is None:
        return None
    return "stored" if digest in models else "rerun"


def _rounded(column: pa.ChunkedArray, name: str) -> list[Any]:
    """Return the values with null for what is not finite; JSON has no NaN."""
    if name in _DIGITS:
        column = pc.round(column, ndigits=_DIGITS[name])
        column = pc.if_else(pc.is_finite(column), column, pa.scalar(None, type=column.type))
    return list(column.to_pylist())


def _member(index: int, row: Mapping[str, Any]) -> Member:
    return {
        "index": index,
        "seeds": row["seeds"],
        "score_mean": row["score_mean"],
        "score_low": row["score_low"],
        "score_high": row["score_high"],
        "probability_dominated": row["probability_dominated"],
    }


def _published_lines(placed: PlacedResult) -> list[str]:
    row = placed.result
    return [
        "published elsewhere, on other training data",
        f"{row.paper}: {row.name}, {row.data}",
        f"top-1 {row.score:.2f} % from a baseline of {row.baseline_score:.2f} %",
        f"keeps {100 * row.size:.1f} % of the size, {100 * row.flops:.1f} % of the FLOPs",
        "placed by its loss relative to this study\u2019s baseline",
    ]


def _sketch(row: Mapping[str, Any]) -> Landmark:
    at = {name: row[name] for name in _COSTS if row[name] is not None} | {"score": row["init_score"]}
    lines = [f"{row['trial']}: a sketch, calibrated and never trained", format_metrics(at)]
    return {"at": at, "lines": [*lines, *map(format_block, row["blocks"])]}


def _importance(importance: Mapping[str, Any]) -> Importance:
    shares = [{"knob": row["knob"], "share": row["share"]} for row in importance["importance"]]
    return {
        "shares": shares,
        "stages": importance["stages"],
        "effects": importance["effects"],
        "shared": importance["shared"],
    }
