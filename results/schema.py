"""The ledger row: what one finished, failed or pruned trial leaves behind, with types that never change silently.

A row is flat but for two lists: `blocks` (the compressed form of each block; null in a knob means uncompressed)
and `history` (one entry for each epoch that ran). A number that is not finite is kept as null, never as NaN.

Version 2 added `allocation` to `blocks`, version 3 `val_top5` (in `history` too), `latency_b64_ms`, and `exponent_axis`
and `activation_block` to `blocks`, version 4 `reused_from`; rows of earlier versions are read with null there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any

import pyarrow as pa

from layers.errors import OvertoneError

__all__ = ["SCHEMA", "LEDGER_VERSION", "TrialRow", "TrialStatus", "to_table"]

LEDGER_VERSION = 4

_TIME = pa.timestamp("us", tz="UTC")

_BLOCK = pa.struct(
    {
        "block": pa.string(),
        "basis": pa.string(),
        "harmonics_y": pa.int64(),
        "harmonics_x": pa.int64(),
        "allocation": pa.string(),
        "pruning_rate": pa.float64(),
        "groups": pa.int64(),
        "transform": pa.string(),
        "bits": pa.int64(),
        "exponent_block": pa.int64(),
        "exponent_axis": pa.string(),
        "activation_block": pa.int64(),
    }
)

_EPOCH = pa.struct(
    {
        "epoch": pa.int64(),
        "train_loss": pa.float64(),
        "val_top1": pa.float64(),
        "val_top5": pa.float64(),
        "val_loss": pa.float64(),
        "lr": pa.float64(),
        "seconds": pa.float64(),
    }
)

SCHEMA = pa.schema(
    {
        "ledger_version": pa.int64(),
        "study": pa.string(),
        "trial": pa.string(),
        "number": pa.int64(),
        "status": pa.string(),
        "error": pa.string(),
        "model": pa.string(),
        "dataset": pa.string(),
        "init": pa.string(),
        "seed": pa.int64(),
        "repeat_of": pa.string(),
        "reused_from": pa.string(),
        "epochs": pa.int64(),
        "epochs_run": pa.int64(),
        "val_top1": pa.float64(),
        "val_top5": pa.float64(),
        "val_loss": pa.float64(),
        "init_score": pa.float64(),
        "train_loss": pa.float64(),
        "latency_ms": pa.float64(),
        "latency_b64_ms": pa.float64(),
        "parameters": pa.int64(),
        "size_bytes": pa.int64(),
        "macs": pa.int64(),
        "flops": pa.int64(),
        "config_digest": pa.string(),
        "spec_digest": pa.string(),
        "spec": pa.string(),
        "blocks": pa.list_(_BLOCK),
        "history": pa.list_(_EPOCH),
        "started_at": _TIME,
        "finished_at": _TIME,
        "compress_s": pa.float64(),
        "finetune_s": pa.float64(),
        "evaluate_s": pa.float64(),
        "total_s": pa.float64(),
        "device": pa.string(),
        "host": pa.string(),
        "environment": pa.string(),
        "model_sha256": pa.string(),
    }
)


class TrialStatus(StrEnum):
    """How a trial ended; a trial that still runs has no row."""

    FINISHED = "finished"
    FAILED = "failed"
    PRUNED = "pruned"


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial as the ledger keeps it.

    Accuracies are fractions in [0, 1], times are seconds, latencies of one image and of a batch of 64 milliseconds,
    `spec` and `versions` JSON.
    `repeat_of` is the id of the trial that this one repeats with another seed, null for a trial of the search itself.
    `reused_from` is the study that ran this trial, null where it was run for its own.
    A finished row needs a finite `val_top1` and its four costs; a failed row needs the text of its error; a
    pruned row, of a trial that was stopped early, has no `val_top1` but in its curve.
    """

    study: str
    trial: str
    number: int
    status: TrialStatus
    model: str
    dataset: str
    init: str
    seed: int
    epochs: int
    epochs_run: int
    config_digest: str
    spec_digest: str
    spec: str
    started_at: datetime
    finished_at: datetime
    error: str | None = None
    repeat_of: str | None = None
    reused_from: str | None = None
    val_top1: float | None = None
    val_top5: float | None = None
    val_loss: float | None = None
    init_score: float | None = None
    train_loss: float | None = None
    latency_ms: float | None = None
    latency_b64_ms: float | None = None
    parameters: int | None = None
    size_bytes: int | None = None
    macs: int | None = None
    flops: int | None = None
    blocks: Sequence[Mapping[str, Any]] = ()
    history: Sequence[Mapping[str, Any]] = ()
    compress_s: float | None = None
    finetune_s: float | None = None
    evaluate_s: float | None = None
    total_s: float | None = None
    device: str | None = None
    host: str | None = None
    environment: str = "{}"
    model_sha256: str | None = None
    ledger_version: int = LEDGER_VERSION

    def __post_init__(self) -> None:
        allowed = [status.value for status in TrialStatus]
        if self.status not in allowed:
            raise OvertoneError(f"trial {self.trial!r} has status {self.status!r}; allowed are {', '.join(allowed)}")
        if not self.trial:
            raise OvertoneError(f"trial number {self.number} of study {self.study!r} has no trial id")
        for name in ("started_at", "finished_at"):
            if getattr(self, name).tzinfo is None:
                raise OvertoneError(f"trial {self.trial!r}: {name} (={getattr(self, name)}) must carry a time zone")
        if self.status == TrialStatus.FINISHED:
            self._check_finished()
        if self.status == TrialStatus.FAILED and not self.error:
            raise OvertoneError(f"trial {self.trial!r} failed: its error text must say why, got {self.error!r}")

    def _check_finished(self) -> None:
        top1 = self.val_top1
        if top1 is None or not 0.0 <= top1 <= 1.0:  # NaN fails the comparison too
            raise OvertoneError(f"trial {self.trial!r} is finished: val_top1 (={top1}) must be a number from 0 to 1")
        for name in ("parameters", "size_bytes", "macs", "flops"):
            value = getattr(self, name)
            if value is None or value < 0:
                raise OvertoneError(f"trial {self.trial!r} is finished: {name} (={value}) must be a count of 0 or more")

    def to_record(self) -> dict[str, Any]:
        """Plain values by column, in the order of the schema; a float that is not finite becomes None."""
        return {name: _plain(getattr(self, name)) for name in SCHEMA.names}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "TrialRow":
        """The row a record of the ledger stands for; other columns are left out, missing ones are an error."""
        known = {field.name: record[field.name] for field in fields(cls) if field.name in record}
        missing = sorted(set(SCHEMA.names) - known.keys())
        if missing:
            raise OvertoneError(f"the record of trial {record.get('trial')!r} lacks the columns {', '.join(missing)}")
        for name in ("blocks", "history"):
            known[name] = tuple(known[name] or ())
        return cls(**{**known, "status": _status(known["status"])})


def to_table(rows: Sequence[TrialRow]) -> pa.Table:
    """Rows as one Arrow table of the ledger's schema."""
    return pa.Table.from_pylist([row.to_record() for row in rows], schema=SCHEMA)


def _status(value: str) -> TrialStatus | str:
    """The enum member where there is one; the row's own check names any other value."""
    return TrialStatus(value) if value in list(TrialStatus) else value


def _plain(value: Any) -> Any:
    """Enum to text, non-finite floats to None, nested sequences and mappings likewise."""
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
