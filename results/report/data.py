"""Everything that the report's page shows, as plain JSON: columns of all trials, and what was computed from them."""

import shlex
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from results.analysis.convergence import anytime_hypervolume
from results.analysis.summary import Summary
from results.formatting import cost_axis, unit_name
from results.report.encoding import encode_configs
from spaces.papers import published_rows

__all__ = ["report_data"]

_COSTS = ("size_bytes", "flops", "latency_ms", "latency_b64_ms", "parameters")
_DIGITS = {"val_top1": 6, "latency_ms": 5, "latency_b64_ms": 4, "total_s": 2}
"""Decimals on the page: an accuracy of a million images still shows every image."""


def report_data(
    summary: Summary,
    seeds: Mapping[str, Mapping[str, Any]],
    models: Collection[str],
    insight: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The page's data; `seeds` is what `results.analysis.summary.repeats` gives, `insight` what
    `results.analysis.importance` gives.

    `models` are the SHA-256 of the packed models that were kept. A cost that no trial has measured is left out of
    `axes`.
    """
    record = summary.record
    known = {name: summary.trials.column(name).null_count < summary.trials.num_rows for name in _COSTS}
    axes = [_axis(name) for name in _COSTS if known[name]]
    return {
        "study": summary.study,
        "objectives": [objective.name for objective in summary.objectives],
        "axes": axes,
        "command": shlex.join(["overtone", "export", "--study", summary.study, "--store", summary.store]),
        "baseline": dict(summary.baseline),
        "trials": _trials(summary, [axis["key"] for axis in axes], models),
        "networks": encode_configs(summary.trials.column("blocks")),
        "front": _members(summary),
        "knee": None if summary.knee is None else summary.knee["trial"],
        "seeds": {trial: dict(row) for trial, row in seeds.items()},
        "history": anytime_hypervolume(summary),
        "published": _published(str(record.get("model", "")), str(record.get("dataset", "")), summary.baseline),
        "insight": None if insight is None else dict(insight),
    }


def _axis(name: str) -> dict[str, Any]:
    title, unit = cost_axis(name)
    return {"key": name, "title": title, "unit": unit, "short": unit_name(name)}


def _trials(summary: Summary, costs: list[str], models: Collection[str]) -> dict[str, list[Any]]:
    """Columns by name; `error` is an index into `errors`, as many trials fail alike.

    `kept` is 1 for a model in the store, 2 for one that an export would train again, 0 where a trial left none.
    """
    table = summary.trials
    columns = {name: table.column(name).to_pylist() for name in ("trial", "number", "status", "seed")}
    columns |= {name: _rounded(table.column(name), name) for name in ("val_top1", *costs, "total_s")}
    errors = pc.dictionary_encode(table.column("error").combine_chunks())
    columns["error"] = pc.fill_null(errors.indices, -1).to_pylist()
    columns["errors"] = errors.dictionary.to_pylist()
    digests = table.column("model_sha256").to_pylist()
    columns["kept"] = [0 if digest is None else 1 if digest in models else 2 for digest in digests]
    return columns


def _rounded(column: pa.ChunkedArray, name: str) -> list[Any]:
    """Values with null for what is not finite; JSON has no NaN."""
    if name in _DIGITS:
        column = pc.round(column, ndigits=_DIGITS[name])
        column = pc.if_else(pc.is_finite(column), column, pa.scalar(None, type=column.type))
    return list(column.to_pylist())


def _members(summary: Summary) -> list[int]:
    """Places of the front's members among the trials."""
    members = pc.is_in(summary.trials.column("trial"), value_set=summary.front.column("trial").combine_chunks())
    return [int(place) for place in np.flatnonzero(np.asarray(members))]


def _published(model: str, dataset: str, baseline: Mapping[str, float]) -> list[dict[str, Any]]:
    return [
        {
            "paper": row.paper,
            "name": row.name,
            "data": row.data,
            "top1": row.score,
            "baseline": row.baseline_score,
            "size": row.size,
            "flops": row.flops,
            "counted": row.counted,
            "here": row.relative_to(baseline),
        }
        for row in published_rows(model, dataset)
    ]
