"""The ledger row: what one finished, failed or pruned trial leaves behind, with types that never change silently.

A row is flat except for `metrics` (a value by name), `blocks` (the compressed form of each block; null in a knob means
uncompressed) and `history` (one entry for each epoch that ran). A number that is not finite is stored as null, never as
NaN; in `metrics` too, where its name stays.

A row knows no task: `score` is what a search maximizes, a fraction in [0, 1], and `score_name` is what people call it
(such as `val_miou`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from typing import Any

import pyarrow as pa

from layers.errors import OvertoneError

__all__ = ["LEDGER_VERSION", "SCHEMA", "TrialRow", "TrialStatus", "block_records", "to_records", "to_table"]

LEDGER_VERSION = 2
"""Rows of version 1 have other networks: there `bits` of a block rounded its layers' inputs too."""

_TIME = pa.timestamp("us", tz="UTC")

_METRICS = pa.map_(pa.string(), pa.float64())

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
        "scale": pa.string(),
        "activation_bits": pa.int64(),
        "activation_block": pa.int64(),
        "arithmetic": pa.string(),
    }
)

_EPOCH = pa.struct(
    {
        "epoch": pa.int64(),
        "train_loss": pa.float64(),
        "score": pa.float64(),
        "metrics": _METRICS,
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
        "score": pa.float64(),
        "init_score": pa.float64(),
        "score_name": pa.string(),
        "metrics": _METRICS,
        "train_loss": pa.float64(),
        "latency_ms": pa.float64(),
        "latency_b64_ms": pa.float64(),
        "latency_runtime": pa.string(),
        "latency_threads": pa.int64(),
        "latency_device": pa.string(),
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

_HARMONICS = ("harmonics_y", "harmonics_x")
_KNOBS = tuple(field.name for field in _BLOCK if field.name not in ("block", *_HARMONICS))


class TrialStatus(StrEnum):
    """How a trial ended; a trial that still runs has no row."""

    FINISHED = "finished"
    FAILED = "failed"
    PRUNED = "pruned"
    SKETCH = "sketch"
    """Built, calibrated and measured, never trained: no trial of the search, whatever else a row of it says."""


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial as the ledger stores it.

    Scores are fractions in [0, 1], times are seconds, latencies of one image and of a batch of 64 are milliseconds (in
    the runtime, with the CPU threads and on the device that are named beside them), `spec` and `environment` are JSON.
    `init_score` is the score before fine-tuning.
    `repeat_of` is the id of the trial that this one repeats with another seed, null for a trial of the search itself.
    `reused_from` is the study that ran this trial, null if it was run for its own study.
    A finished row needs a finite `score`, its `score_name` and its four costs; a failed row needs the text of its
    error; a pruned row, of a trial that was stopped early, has scores in its history alone; a sketch, which was never
    trained, has a finite `init_score` and its four costs, and neither score nor epochs.
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
    score: float | None = None
    init_score: float | None = None
    score_name: str | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    train_loss: float | None = None
    latency_ms: float | None = None
    latency_b64_ms: float | None = None
    latency_runtime: str | None = None
    latency_threads: int | None = None
    latency_device: str | None = None
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
            raise OvertoneError(f"trial {self.trial!r}: status (={self.status!r}) must be one of {', '.join(allowed)}")
        if not self.trial:
            raise OvertoneError(f"trial number {self.number} of study {self.study!r} has no trial id")
        for name in ("started_at", "finished_at"):
            if getattr(self, name).tzinfo is None:
                raise OvertoneError(f"trial {self.trial!r}: {name} (={getattr(self, name)}) must carry a time zone")
        if self.status == TrialStatus.FINISHED:
            self._check_measured("score")
        if self.status == TrialStatus.SKETCH:
            self._check_measured("init_score")
            if self.score is not None or self.epochs_run:
                raise OvertoneError(
                    f"trial {self.trial!r} is a sketch, never trained: score (={self.score}) must be None and "
                    f"epochs_run (={self.epochs_run}) 0"
                )
        if self.status == TrialStatus.FAILED and not self.error:
            raise OvertoneError(f"trial {self.trial!r} failed: error (={self.error!r}) must say why")

    def _check_measured(self, score: str) -> None:
        where = f"trial {self.trial!r} is {'finished' if score == 'score' else 'a sketch'}"
        measured = getattr(self, score)
        if measured is None or not 0.0 <= measured <= 1.0:  # NaN fails the comparison too
            raise OvertoneError(f"{where}: {score} (={measured}) must be a number from 0 to 1")
        if not self.score_name:
            raise OvertoneError(f"{where}: score_name (={self.score_name!r}) must say what its score is")
        for name in ("parameters", "size_bytes", "macs", "flops"):
            value = getattr(self, name)
            if value is None or value < 0:
                raise OvertoneError(f"{where}: {name} (={value}) must be a count of 0 or more")

    def to_record(self) -> dict[str, Any]:
        """Return plain values by column, in the order of the schema; a float that is not finite becomes None."""
        return {name: _plain(getattr(self, name)) for name in SCHEMA.names}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "TrialRow":
        """Return the row of a ledger's record; raise `OvertoneError` if columns are missing, ignore foreign ones.

        Maps may be dictionaries or, as `pa.Table.to_pylist` gives them, lists of pairs.
        """
        values = {field.name: record[field.name] for field in fields(cls) if field.name in record}
        missing = sorted(set(SCHEMA.names) - values.keys())
        if missing:
            raise OvertoneError(f"the record of trial {record.get('trial')!r} lacks the columns {', '.join(missing)}")
        values = _with_dicts(values)
        blocks, history = tuple(values["blocks"] or ()), tuple(values["history"] or ())
        lists = {"blocks": blocks, "history": history, "metrics": values["metrics"] or {}}
        return cls(**{**values, **lists, "status": _status(values["status"])})


def to_table(rows: Sequence[TrialRow]) -> pa.Table:
    """Return rows as one Arrow table of the ledger's schema."""
    return pa.Table.from_pylist([row.to_record() for row in rows], schema=SCHEMA)


def to_records(table: pa.Table) -> list[dict[str, Any]]:
    """Return some or all columns of the ledger as one dictionary a row, metrics as dictionaries too.

    `pa.Table.to_pylist` gives maps as lists of pairs, and in pyarrow 18 has no option for anything else.
    """
    return [_with_dicts(record) for record in table.to_pylist()]


def block_records(config: Mapping[str, Any], names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return a `NetworkConfig`'s JSON as the column `blocks`: one record a block, null in the knobs that are not set.

    `names` are all blocks of the network, in order; without them only the blocks that the config names are recorded.
    """
    blocks = config.get("blocks", {})
    return [_block_record(name, blocks.get(name, {})) for name in dict.fromkeys([*(names or ()), *blocks])]


def _block_record(name: str, knobs: Mapping[str, Any]) -> dict[str, Any]:
    harmonics = dict(zip(_HARMONICS, knobs.get("harmonics") or (None, None), strict=True))
    values = {**{knob: knobs.get(knob) for knob in _KNOBS}, **harmonics, "block": name}
    return {field.name: values[field.name] for field in _BLOCK}


def _with_dicts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record with its maps, also those in its history, as dictionaries."""
    record = dict(record)
    if record.get("metrics") is not None:
        record["metrics"] = dict(record["metrics"])
    if record.get("history") is not None:
        record["history"] = [_with_dicts(epoch) for epoch in record["history"]]
    return record


def _status(value: str) -> TrialStatus | str:
    """Return the enum member if there is one; the row's own check refuses any other value."""
    return TrialStatus(value) if value in list(TrialStatus) else value


def _plain(value: Any) -> Any:
    """Return enums as text and non-finite floats as None, in nested sequences and mappings too."""
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
