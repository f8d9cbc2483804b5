"""Trials that other studies of the ledger have finished: one of the same identity need not be run again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow.compute as pc

from layers import OvertoneError, UsageError
from results.objectives import Objective, parse_objectives
from results.schema import TrialRow, TrialStatus
from search.study.record import network_config, reused_row
from search.study.study_ledger import StudyLedger
from spaces import NetworkConfig
from spaces.identity import network_difference

__all__ = ["comparable_studies", "finished_rows", "warm_start_rows"]

_SAME = ("model", "weights_sha256", "data_fingerprint", "recipe", "init", "saliency", "epochs", "seed")
"""Keys of two studies' records that must agree for their trials of equal configs to be equal."""


def comparable_studies(study: StudyLedger) -> list[StudyLedger]:
    """Return the other studies of the ledger, some of whose trials may be the study's: none of another version."""
    record = study.record()
    return [other for other in study.others() if _is_comparable(record, other)]


def finished_rows(studies: Iterable[StudyLedger], objectives: Sequence[Objective]) -> dict[str, Mapping[str, Any]]:
    """Return the studies' finished rows that have all objectives, by `spec_digest`; of equal ones the newest."""
    newest: dict[str, Mapping[str, Any]] = {}
    for study in studies:
        rows = study.trials()
        complete = pc.equal(rows.column("status"), TrialStatus.FINISHED.value)
        for objective in objectives:
            complete = pc.and_(complete, pc.is_valid(rows.column(objective.column)))
        for row in rows.filter(complete).to_pylist():
            digest = row["spec_digest"]
            if digest not in newest or newest[digest]["finished_at"] < row["finished_at"]:
                newest[digest] = row
    return newest


def warm_start_rows(
    study: StudyLedger, record: Mapping[str, Any], allowed: Callable[[NetworkConfig], bool]
) -> list[TrialRow]:
    """Return the first rows of a new study: the finished trials of its record's `warm_start` that it may try itself.

    Raises `UsageError` if one of these studies has another network, data or recipe.
    """
    objectives = parse_objectives(record["objectives"], score_name=record["score_name"])
    sources = [StudyLedger(study.ledger, name) for name in record["warm_start"]]
    for source in sources:
        if difference := _difference(record, source.record()):
            raise UsageError(f"warm_start (={source.name!r}) must be a study of equal trials; its {difference} differs")
    newest = finished_rows(sources, objectives)
    rows = [newest[digest] for digest in sorted(newest) if allowed(network_config(newest[digest]))]
    suggestions = (
        {"number": number, "trial": row["spec_digest"][:10], "spec": json.loads(row["spec"])}
        for number, row in enumerate(rows)
    )
    return [reused_row(study.name, suggestion, row) for suggestion, row in zip(suggestions, rows, strict=True)]


def _is_comparable(record: Mapping[str, Any], other: StudyLedger) -> bool:
    try:
        return not _difference(record, other.record())
    except OvertoneError:  # a record that cannot be read is in no way of a search that does not need it
        return False


def _difference(record: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return the first key by which the trials of two studies differ, "" if there is none."""
    key = next((name for name in _SAME if record.get(name) != other.get(name)), "")
    part = network_difference(record.get("network"), other.get("network"))
    return key or (part and f"network ({part})")
