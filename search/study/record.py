"""From a trial's report to its row in the ledger."""

from __future__ import annotations

import json
import platform
import socket
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import Any

from results.schema import TrialRow, TrialStatus, block_records
from spaces import Network, NetworkConfig
from trainers.runtime.place import LATENCY
from trainers.score import SCORE_NAME
from trainers.spec import TrialSpec

__all__ = [
    *("failed_row", "finished_row", "model_score", "network_config", "pruned_row", "reused_row", "row_scores"),
    "sketch_row",
]

_FINAL = ("score", "metrics", *LATENCY)
"""Columns that only a trial with all its epochs has."""
_MEASURED = ("init_score", "config_digest", "spec_digest", "compress_s", "finetune_s", "evaluate_s")
"""Columns that a trial has from its start on."""


def finished_row(
    study: str, suggestion: Mapping[str, Any], report: Mapping[str, Any], model_sha256: str | None = None
) -> TrialRow:
    """Return the row of a trial that ran to its end; `report` is the last one of its actor.

    `model_sha256` is that of the packed file that was measured, whether or not it is kept.
    """
    return TrialRow(
        **_identity(study, suggestion, report),
        **_measurements(report, (*_FINAL, *_MEASURED)),
        status=TrialStatus.FINISHED,
        model_sha256=model_sha256,
    )


def pruned_row(study: str, suggestion: Mapping[str, Any], report: Mapping[str, Any]) -> TrialRow:
    """Return the row of a trial that was stopped early: its measurements until then, without a final score."""
    return TrialRow(
        **_identity(study, suggestion, report), **_measurements(report, _MEASURED), status=TrialStatus.PRUNED
    )


def sketch_row(study: str, suggestion: Mapping[str, Any], report: Mapping[str, Any], model_sha256: str) -> TrialRow:
    """Return the row of a config that was calibrated and measured, and is not trained; its model is the one measured.

    Its score is the one before training alone, under no other name.
    """
    return TrialRow(
        **_identity(study, suggestion, report),
        **_measurements(report, _MEASURED),
        status=TrialStatus.SKETCH,
        model_sha256=model_sha256,
    )


def reused_row(
    study: str, suggestion: Mapping[str, Any], row: Mapping[str, Any], report: Mapping[str, Any] | None = None
) -> TrialRow:
    """Return the row of a trial that another study's row answers: it took no time here, but that of a report.

    The report has the trial's latency, which was taken again.
    """
    now = datetime.now(UTC)
    times = {"started_at": now, "finished_at": now, "total_s": 0.0}
    timed = {} if report is None else {**{name: report[name] for name in LATENCY}, **_times(report["started"])}
    return TrialRow.from_record(
        {
            **row,
            "study": study,
            "number": suggestion["number"],
            "trial": suggestion["trial"],
            "repeat_of": None,
            "reused_from": row["reused_from"] or row["study"],
            "spec": json.dumps(suggestion["spec"]),
            "blocks": block_records(suggestion["spec"]["config"]),
            **times,
            **timed,
        }
    )


def failed_row(
    study: str, suggestion: Mapping[str, Any], report: Mapping[str, Any], error: str, network: Network
) -> TrialRow:
    """Return the row of a trial that failed, or whose worker died; its costs are known all the same."""
    spec = TrialSpec.from_json(suggestion["spec"])
    cost = network.cost(spec.config)
    return TrialRow(
        **_identity(study, suggestion, report),
        status=TrialStatus.FAILED,
        error=error,
        epochs_run=report.get("epochs_run", 0),
        parameters=cost.parameters,
        size_bytes=cost.size_bytes,
        macs=cost.macs,
        flops=cost.flops,
        config_digest=network.digest(spec.config),
        spec_digest=spec.digest(network),
        **_times(report.get("started")),
        device=report.get("device"),
        host=report.get("hostname"),
    )


def network_config(row: Mapping[str, Any]) -> NetworkConfig:
    """Return the config that a row of the ledger was run with."""
    return TrialSpec.from_json(json.loads(row["spec"])).config


def model_score(row: Mapping[str, Any]) -> float:
    """Return the score that the packed model of a row's trial has: of a sketch that before any training."""
    return float(row["init_score"] if row["status"] == TrialStatus.SKETCH else row["score"])


def row_scores(row: Mapping[str, Any]) -> list[float]:
    """Return a row's score before training and after each epoch; nothing if the row lacks the first."""
    if row["init_score"] is None:
        return []
    return [row["init_score"], *(epoch["score"] for epoch in row["history"] or ())]


def _identity(study: str, suggestion: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that say which trial it is and where it ran."""
    spec = suggestion["spec"]
    return {
        "study": study,
        "trial": suggestion["trial"],
        "number": suggestion["number"],
        "model": spec["model"],
        "dataset": spec["data"]["name"],
        "init": spec["init"],
        "seed": spec["seed"],
        "repeat_of": suggestion.get("repeat_of"),
        "epochs": spec["epochs"],
        "score_name": SCORE_NAME,
        "spec": json.dumps(spec),
        "blocks": tuple(block_records(spec["config"])),
        "environment": json.dumps(_environment(report)),
    }


def _measurements(report: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the columns of these names from a trial's result so far, its costs, history and times."""
    result = json.loads(report["result"])
    history = result["history"]
    return {
        **{name: result[name] for name in names},
        **result["cost"],
        "epochs_run": len(history),
        "train_loss": history[-1]["train_loss"] if history else None,
        "history": tuple(history),
        "device": report["device"],
        "host": report.get("hostname"),
        **_times(report.get("started")),
    }


def _times(started: str | None) -> dict[str, Any]:
    now = datetime.now(UTC)
    start = datetime.fromisoformat(started) if started else now
    return {"started_at": start, "finished_at": now, "total_s": (now - start).total_seconds()}


def _environment(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return whatever else the bits of a result depend on, such as the threads that share out a CPU's sums."""
    threads = {"threads": report["threads"]} if "threads" in report else {}
    return {**_packages(), "python": platform.python_version(), "driver": socket.gethostname(), **threads}


@cache
def _packages() -> dict[str, str]:
    return {name: version(name) for name in ("overtone", "torch", "ray", "optuna")}
