"""What the studies of a store have measured already: a trial of the same identity need not be run again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow.compute as pc

from layers import UsageError
from results.ledger.ledger import Ledger
from results.schema import TrialRow, TrialStatus
from search.study.record import network_config, reused_row
from spaces import NetworkConfig

__all__ = ["finished_rows", "comparable_studies", "warm_start_rows"]

_SAME = ("model", "weights_sha256", "data_fingerprint", "recipe", "init", "saliency", "epochs", "seed")
"""What the trials of two studies must have in common, by the studies' records, for all of equal configs to be equal."""
_BEFORE = {"saliency": "magnitude"}
"""What went without saying in older records."""


def comparable_studies(ledger: Ledger, study: str) -> list[str]:
    """The other studies of the store, some of whose trials may be the study's."""
    record = ledger.study(study)
    return [name for name in ledger.studies() if name != study and not _differs(record, ledger.study(name))]


def finished_rows(ledger: Ledger, studies: Iterable[str], objectives: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """The finished rows of these studies that know all objectives, by `spec_digest`; the newest of equal ones."""
    found: dict[str, Mapping[str, Any]] = {}
    for study in studies:
        rows = ledger.trials(study)
        known = pc.equal(rows.column("status"), TrialStatus.FINISHED.value)
        for name in objectives:
            known = pc.and_(known, pc.is_valid(rows.column(name)))
        for row in rows.filter(known).to_pylist():
            if row["spec_digest"] not in found or found[row["spec_digest"]]["finished_at"] < row["finished_at"]:
                found[row["spec_digest"]] = row
    return found


def warm_start_rows(
    ledger: Ledger, study: str, record: Mapping[str, Any], allowed: Callable[[NetworkConfig], bool]
) -> list[TrialRow]:
    """The study's first rows: what the studies in its record's `warm_start` have finished and it may try itself.

    Raises `UsageError` where one of them has another network, data or schedule.
    """
    for name in record["warm_start"]:
        if different := _differs(record, ledger.study(name)):
            raise UsageError(f"warm_start (={name!r}) must be a study of equal trials; its {different} differs.")
    found = finished_rows(ledger, record["warm_start"], record["objectives"])
    rows = [found[digest] for digest in sorted(found) if allowed(network_config(found[digest]))]
    suggestions = (
        {"number": number, "trial": row["spec_digest"][:10], "spec": json.loads(row["spec"])}
        for number, row in enumerate(rows)
    )
    return [reused_row(study, suggestion, row) for suggestion, row in zip(suggestions, rows, strict=True)]


def _differs(record: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What the trials of two studies cannot have in common; empty where there is nothing."""
    one, two = {**_BEFORE, **record}, {**_BEFORE, **other}
    return next((name for name in _SAME if one.get(name) != two.get(name)), "")
