"""The tables that queries of a study see, each made on demand.

`trials` has one row a trial of the search and `front` those that no other trial dominates, with how sure they are
(`results.analysis.confidence`); `epochs` has one row an epoch of a trial, `blocks` one a block of a trial,
`confirmations` one a repeat of a trial with another seed (`repeat_of` names the trial), `sketches` one a config that
was calibrated and measured and never trained (it has `init_score`, no `score`), and `baseline` one row, the
uncompressed network.

Beside the stored columns, all but `blocks` show each metric as a column of its own name, the score among them: if a
study's score is called `val_miou`, then `val_miou` is `score`, `val_miou_mean` is `score_mean`, and `init_miou` is
`init_score`. A stored column wins over a metric of the same name.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from results.analysis.confidence import CONFIDENCE_SCHEMA, study_confidence
from results.ledger.ledger import Ledger
from results.objectives import init_name
from results.queries.names import TABLE_NAMES
from results.schema import SCHEMA

__all__ = [
    "TABLES",
    "baseline_table",
    "larger_is_better",
    "trials_and_sketches_table",
    "trials_table",
    "with_confidence",
]

_BASELINE = pa.schema(
    {
        "score": pa.float64(),
        "metrics": SCHEMA.field("metrics").type,
        "val_images": pa.int64(),
        "latency_ms": pa.float64(),
        "latency_b64_ms": pa.float64(),
        "parameters": pa.int64(),
        "size_bytes": pa.int64(),
        "macs": pa.int64(),
        "flops": pa.int64(),
    }
)
_SCORES = ("score", "score_mean", "score_low", "score_high", "score_repeats")
_SMALLER_IS_BETTER = ("loss", "error")
"""Endings of the names of metrics that a good network has little of."""


def trials_table(ledger: Ledger, study: str) -> pa.Table:
    """Return the trials of a study's search, by number."""
    return _with_own_names(ledger.trials(study), ledger.study(study))


def trials_and_sketches_table(ledger: Ledger, study: str) -> pa.Table:
    """Return the trials of a study's search, then its sketches."""
    rows = pa.concat_tables([ledger.trials(study), ledger.sketches(study)])
    return _with_own_names(rows, ledger.study(study))


def baseline_table(ledger: Ledger, study: str) -> pa.Table:
    """Return the uncompressed network's figures, null if they are not known: always one row."""
    record = ledger.study(study)
    figures = record.get("uncompressed") or {}
    table = pa.Table.from_pylist([{name: figures.get(name) for name in _BASELINE.names}], schema=_BASELINE)
    return _with_own_names(table, record)


def with_confidence(ledger: Ledger, study: str, trials: pa.Table) -> pa.Table:
    """Return the front of some trials of a study, with the columns of `CONFIDENCE_SCHEMA` beside theirs."""
    confidence = study_confidence(ledger, study, trials)
    members = trials.take(pc.index_in(confidence.column("trial"), trials.column("trial")))
    for name in CONFIDENCE_SCHEMA.names[1:]:
        members = members.append_column(CONFIDENCE_SCHEMA.field(name), confidence.column(name))
    return _with_own_names(members, ledger.study(study))


def larger_is_better(table: pa.Table, record: Mapping[str, Any]) -> frozenset[str]:
    """Return the columns of `trials` or `front` that sorting shows highest first: scores, good metrics and times."""
    score = record["score_name"]
    names = {"score", "score_mean", "init_score", score, f"{score}_mean", init_name(score), "started_at", "finished_at"}
    return frozenset(names.union(name for name in _metrics(table, record) if not name.endswith(_SMALLER_IS_BETTER)))


def _with_own_names(table: pa.Table, record: Mapping[str, Any]) -> pa.Table:
    """Return the table with its scores and metrics under their own names too."""
    columns = {name.lower() for name in table.column_names}  # DuckDB ignores case
    for name, values in _own_names(table, record):
        if name.lower() not in columns:
            columns.add(name.lower())
            table = table.append_column(name, values)
    return table


def _own_names(table: pa.Table, record: Mapping[str, Any]) -> Iterator[tuple[str, pa.ChunkedArray]]:
    score = record["score_name"]
    for name in _SCORES:
        if name in table.column_names:
            yield score + name.removeprefix("score"), table.column(name)
    if "init_score" in table.column_names:
        yield init_name(score), table.column("init_score")
    for name in _metrics(table, record):
        yield name, pc.map_lookup(table.column("metrics"), pa.scalar(name), "first")


def _metrics(table: pa.Table, record: Mapping[str, Any]) -> list[str]:
    """Return the names of the uncompressed network's metrics, then of those that only the rows have."""
    names = (record.get("uncompressed") or {}).get("metrics") or {}
    keys = [chunk.keys.unique().to_pylist() for chunk in table.column("metrics").chunks]
    return list(dict.fromkeys([*names, *sorted({key for chunk in keys for key in chunk})]))


def _exploded(trials: pa.Table, column: str) -> pa.Table:
    """Return one row for each entry of a list column, beside the trial's id and number."""
    values = trials.column(column).combine_chunks()
    parents = pc.list_parent_indices(values)
    entries = pc.list_flatten(values)
    fields = {field.name: pc.struct_field(entries, field.name) for field in entries.type}
    keys = {name: trials.column(name).take(parents) for name in ("trial", "number")}
    return pa.table({**keys, **fields})


_MAKERS: tuple[Callable[[Ledger, str], pa.Table], ...] = (
    trials_table,
    lambda ledger, study: with_confidence(ledger, study, trials_table(ledger, study)),
    lambda ledger, study: _with_own_names(_exploded(ledger.trials(study), "history"), ledger.study(study)),
    lambda ledger, study: _exploded(ledger.trials(study), "blocks"),
    lambda ledger, study: _with_own_names(ledger.repeats(study), ledger.study(study)),
    lambda ledger, study: _with_own_names(ledger.sketches(study), ledger.study(study)),
    baseline_table,
)
TABLES: Mapping[str, Callable[[Ledger, str], pa.Table]] = dict(zip(TABLE_NAMES, _MAKERS, strict=True))
