"""The tables that a study's questions are asked of, each made when it is asked for.

`trials` has one row a trial of the search and `front` those that no other beats, with how sure they are
(`results.analysis.confidence`); `epochs` has one row an epoch of a trial, `blocks` one a block of a trial,
`confirmations` one a repeat of a trial with another seed (`repeat_of` names the trial), and `baseline` one row, the
uncompressed network.
"""

from collections.abc import Callable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from results.analysis.confidence import CONFIDENCE_SCHEMA, confidence
from results.ledger.ledger import Ledger

__all__ = ["TABLES", "baseline_table", "with_confidence"]

_BASELINE = pa.schema(
    {
        "val_top1": pa.float64(),
        "val_top5": pa.float64(),
        "val_images": pa.int64(),
        "latency_ms": pa.float64(),
        "latency_b64_ms": pa.float64(),
        "parameters": pa.int64(),
        "size_bytes": pa.int64(),
        "macs": pa.int64(),
        "flops": pa.int64(),
    }
)


def baseline_table(ledger: Ledger, study: str) -> pa.Table:
    """The uncompressed network's figures, null where they are not known: always one row."""
    known = ledger.study(study).get("uncompressed") or {}
    return pa.Table.from_pylist([{name: known.get(name) for name in _BASELINE.names}], schema=_BASELINE)


def with_confidence(ledger: Ledger, study: str, trials: pa.Table) -> pa.Table:
    """The front of some trials of a study, with the columns of `CONFIDENCE_SCHEMA` beside them."""
    objectives = ledger.objectives(study)
    images = (ledger.study(study).get("uncompressed") or {}).get("val_images")
    found = confidence(trials, ledger.repeats(study), objectives, val_images=images)
    members = trials.take(pc.index_in(found.column("trial"), trials.column("trial")))
    for name in CONFIDENCE_SCHEMA.names[1:]:
        members = members.append_column(CONFIDENCE_SCHEMA.field(name), found.column(name))
    return members


def _exploded(trials: pa.Table, column: str) -> pa.Table:
    """One row an entry of a list column, beside the trial's id and number."""
    values = trials.column(column).combine_chunks()
    parents = pc.list_parent_indices(values)
    entries = pc.list_flatten(values)
    fields = {field.name: pc.struct_field(entries, field.name) for field in entries.type}
    keys = {name: trials.column(name).take(parents) for name in ("trial", "number")}
    return pa.table({**keys, **fields})


TABLES: Mapping[str, Callable[[Ledger, str], pa.Table]] = {
    "trials": lambda ledger, study: ledger.trials(study),
    "front": lambda ledger, study: with_confidence(ledger, study, ledger.trials(study)),
    "epochs": lambda ledger, study: _exploded(ledger.trials(study), "history"),
    "blocks": lambda ledger, study: _exploded(ledger.trials(study), "blocks"),
    "confirmations": lambda ledger, study: ledger.repeats(study),
    "baseline": baseline_table,
}
