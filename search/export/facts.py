"""The facts of a trial for its export's card: the row's figures, numbers of images, and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc
import torch

from layers import OvertoneError
from results.analysis.confidence import study_confidence
from results.ledger.ledger import Ledger
from results.schema import TrialStatus
from search.study.record import model_score
from trainers.data import Data
from trainers.evaluation import evaluation
from trainers.runtime.place import LATENCY
from trainers.score import SCORE_NAME
from trainers.spec import TrialSpec

__all__ = ["MAX_DISAGREEMENT", "card_facts", "test_facts"]

MAX_DISAGREEMENT = 0.005
"""Share of images whose class may turn on the order of additions, which differs with the device and its threads."""

_FIGURES = (
    *("trial", "status", "score_name", "score", "init_score", "metrics", "size_bytes", "flops", "macs", "parameters"),
    *(*LATENCY, "device", "model_sha256", "same_file"),
)


def card_facts(
    ledger: Ledger,
    study: str,
    row: Mapping[str, Any],
    spec: TrialSpec,
    data: Data,
    logits: torch.Tensor,
) -> dict[str, Any]:
    """Return the facts of a row as plain JSON data.

    `logits` are those of the row's packed model for the validation images. Raises `OvertoneError` if the model's score
    is not the row's.
    """
    validation = evaluation(logits, data.val.labels)
    score = validation.metrics("val")[SCORE_NAME]
    if abs(score - model_score(row)) > MAX_DISAGREEMENT:
        raise OvertoneError(
            f"the packed model of trial {row['trial']} has {SCORE_NAME} {score}, the ledger has {model_score(row)}"
        )
    return {
        "study": study,
        **{name: row[name] for name in _FIGURES if name in row},
        "dataset": spec.data.label,
        "seed": spec.seed,
        "epochs": spec.epochs,
        "blocks": row["blocks"],
        "int8": any(block["arithmetic"] == "int8" for block in row["blocks"]),
        "emulated": any(block["activation_bits"] for block in row["blocks"]),
        "val_n": validation.n,
        **({} if row["status"] == TrialStatus.SKETCH else _over_seeds(ledger, study, row["trial"])),
    }


def test_facts(logits: torch.Tensor, data: Data) -> dict[str, Any]:
    """Return how good the file is that gives the test images these logits, as plain JSON data."""
    if not logits.isfinite().all():
        raise OvertoneError("the exported file gives test images outputs that are infinite or not numbers")
    test = evaluation(logits, data.test.labels)
    return {"test_metrics": test.metrics("test"), "test_n": test.n}


def _over_seeds(ledger: Ledger, study: str, trial: str) -> dict[str, Any]:
    """Return the trial's score over the seeds that it was run with; for one seed only their number."""
    trials = ledger.trials(study)
    alone = trials.filter(pc.equal(trials.column("trial"), trial))
    (row,) = study_confidence(ledger, study, alone).to_pylist()
    names = ("seeds", "score_mean", "score_low", "score_high", "score_repeats")
    return {name: row[name] for name in (names if row["seeds"] > 1 else names[:1])}
