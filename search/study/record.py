"""From what a trial reported to its row in the ledger."""

from __future__ import annotations

import json
import platform
import socket
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import Any

from results.formatting_network import block_records
from results.schema import TrialRow, TrialStatus
from spaces import Network, NetworkConfig
from trainers.spec import TrialSpec

__all__ = ["failed_row", "finished_row", "network_config", "pruned_row", "reused_row", "row_accuracies"]

_FINAL = ("val_top1", "val_top5", "val_loss", "latency_ms", "latency_b64_ms")
_MEASURED = ("init_score", "config_digest", "spec_digest", "compress_s", "finetune_s", "evaluate_s")


def finished_row(
    study: str, suggestion: Mapping[str, Any], report: Mapping[str, Any], model_sha256: str | None = None
) -> TrialRow:
    """The row of a trial that ran to its end; `report` is the last one of its actor.

    `model_sha256` is that of the packed file that was measured, whether or not it is kept.
    """
    return TrialRow(
        **_common(study, suggestion, report),
        **_measured(report, (*_FINAL, *_MEASURED)),
        status=TrialStatus.FINISHED,
        model_sha256=model_sha256,
    )


def pruned_row(study: str, suggestion: Mapping[str, Any], report: Mapping[str, Any]) -> TrialRow:
    """The row of a trial that was stopped early: what it measured until then, no final accuracy among it."""
    return TrialRow(**_common(study, suggestion, report), **_measured(report, _MEASURED), status=TrialStatus.PRUNED)


def reused_row(study: str, suggestion: Mapping[str, Any], row: Mapping[str, Any]) -> TrialRow:
    """The row of a trial of which another study's row tells everything: it took no time here."""
    now = datetime.now(UTC)
    here = {"study": study, "number": suggestion["number"], "trial": suggestion["trial"], "repeat_of": None}
    spec = {"spec": json.dumps(suggestion["spec"]), "blocks": block_records(suggestion["spec"]["config"])}
    took = {"started_at": now, "finished_at": now, "total_s": 0.0}
    origin = {"reused_from": row["reused_from"] or row["study"]}
    return TrialRow.from_record({**row, **here, **spec, **took, **origin})


def failed_row(
    study: str, suggestion: Mapping[str, Any], report: Mapping[str, Any], error: str, network: Network
) -> TrialRow:
    """The row of a trial that failed, or whose worker died; its costs are known all the same."""
    spec = TrialSpec.from_json(suggestion["spec"])
    cost = network.cost(spec.config)
    return TrialRow(
        **_common(study, suggestion, report),
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
    """The config that a row of the ledger was run with."""
    return TrialSpec.from_json(json.loads(row["spec"])).config


def row_accuracies(row: Mapping[str, Any]) -> list[float]:
    """Validation accuracy before training and after each epoch; none where the row does not know the first."""
    if row["init_score"] is None:
        return []
    return [row["init_score"], *(epoch["val_top1"] for epoch in row["history"] or ())]


def _measured(report: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The columns of what a trial has measured so far."""
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


def _common(study: str, suggestion: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
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
        "spec": json.dumps(spec),
        "blocks": tuple(block_records(spec["config"])),
        "environment": json.dumps(_versions(report)),
    }


def _times(started: str | None) -> dict[str, Any]:
    now = datetime.now(UTC)
    begin = datetime.fromisoformat(started) if started else now
    return {"started_at": begin, "finished_at": now, "total_s": (now - begin).total_seconds()}


def _versions(report: Mapping[str, Any]) -> dict[str, Any]:
    """Whatever else the bits of a result depend on, such as the threads that share out a CPU's sums."""
    threads = {"threads": report["threads"]} if "threads" in report else {}
    return {**_packages(), "python": platform.python_version(), "driver": socket.gethostname(), **threads}


@cache
def _packages() -> dict[str, str]:
    return {name: version(name) for name in ("overtone", "torch", "ray", "optuna")}
