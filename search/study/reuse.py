"""Trials that other studies of the ledger have finished: one of the same identity need not be run again.

Of a latency all of runtime, threads and device must be the same too. Where they are not, or where it was not taken, a
worker takes it of the packed model, if that was kept, and trains nothing.
"""

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
from trainers.runtime.place import LATENCY, Place

__all__ = ["comparable_studies", "earlier_latency", "finished_rows", "warm_start_rows"]

_SAME = ("model", "weights_sha256", "data_fingerprint", "recipe", "init", "saliency", "epochs", "seed")
"""Keys of two studies' records that must agree for their trials of equal configs to be equal."""


def comparable_studies(study: StudyLedger) -> list[StudyLedger]:
    """Return the other studies of the ledger, some of whose trials may be the study's: none of another version."""
    record = study.record()
    return [other for other in study.others() if _is_comparable(record, other)]


def finished_rows(
    studies: Iterable[StudyLedger], objectives: Sequence[Objective], place: Place | None = None
) -> dict[str, Mapping[str, Any]]:
    """Return the studies' finished rows that answer a trial of these objectives, by `spec_digest`.

    With `place`, where latency will be taken as far as anyone knows, they have a latency of there or a packed model in
    the store; else they have all objectives. Of equal ones a latency of there comes first, then the newest.
    """
    found: dict[str, tuple[Any, Mapping[str, Any]]] = {}
    needed = [objective.column for objective in objectives if place is None or objective.column not in LATENCY]
    for study in studies:
        kept = frozenset[str]() if place is None else study.ledger.models()
        for row in _finished(study, needed):
            there = place is not None and place.has_latency(row)
            rank = there, row["finished_at"]
            digest = row["spec_digest"]
            if (place is None or there or row["model_sha256"] in kept) and (
                digest not in found or found[digest][0] < rank
            ):
                found[digest] = rank, row
    return {digest: row for digest, (_, row) in found.items()}


def earlier_latency(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a worker must know of a row that answers its trial: the latency, and which model to take it of."""
    return {name: row[name] for name in ("spec_digest", "model_sha256", *LATENCY)}


def warm_start_rows(
    study: StudyLedger,
    record: Mapping[str, Any],
    spelled: Callable[[NetworkConfig], NetworkConfig | None],
    place: Place | None = None,
) -> list[TrialRow]:
    """Return the first rows of a new study: the finished trials of its record's `warm_start` that it may try itself.

    `spelled` returns a config in the blocks of the study's space, None for one that it may not try. Raises `UsageError`
    if one of these studies has another network, data or recipe.
    """
    objectives = parse_objectives(record["objectives"], score_name=record["score_name"])
    sources = [StudyLedger(study.ledger, name) for name in record["warm_start"]]
    for source in sources:
        if difference := _difference(record, source.record()):
            raise UsageError(f"warm_start (={source.name!r}) must be a study of equal trials; its {difference} differs")
    newest = finished_rows(sources, objectives, place)
    configs = {digest: spelled(network_config(newest[digest])) for digest in sorted(newest)}
    allowed = ((newest[digest], config) for digest, config in configs.items() if config is not None)
    return [reused_row(study.name, _suggestion(number, *both), both[0]) for number, both in enumerate(allowed)]


def _suggestion(number: int, row: Mapping[str, Any], config: NetworkConfig) -> dict[str, Any]:
    spec = {**json.loads(row["spec"]), "config": config.to_json()}
    return {"number": number, "trial": row["spec_digest"][:10], "spec": spec}


def _finished(study: StudyLedger, needed: Sequence[str]) -> list[dict[str, Any]]:
    """Return the finished rows of a study that have these columns."""
    rows = study.trials()
    complete = pc.equal(rows.column("status"), TrialStatus.FINISHED.value)
    for column in needed:
        complete = pc.and_(complete, pc.is_valid(rows.column(column)))
    found: list[dict[str, Any]] = rows.filter(complete).to_pylist()
    return found


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
