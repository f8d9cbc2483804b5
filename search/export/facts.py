"""What an export's card says of a trial: the row's figures, accuracies with their numbers of images, and over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc
from torch import nn

from layers import OvertoneError
from results.analysis.confidence import confidence
from results.ledger.ledger import Ledger
from trainers.data import Data
from trainers.evaluation import evaluate
from trainers.spec import TrialSpec

__all__ = ["MAX_DISAGREEMENT", "card_facts"]

MAX_DISAGREEMENT = 0.005
"""Share of images whose class may turn on the order of additions, which differs with the device and its threads."""

_FIGURES = (
    *("trial", "val_top1", "val_top5", "size_bytes", "flops", "macs", "parameters", "latency_ms", "latency_b64_ms"),
    *("device", "model_sha256", "same_file"),
)


def card_facts(
    ledger: Ledger, study: str, row: Mapping[str, Any], spec: TrialSpec, model: nn.Module, data: Data
) -> dict[str, Any]:
    """The facts of a row, whose packed model this is, as plain JSON data; reads the test split.

    Raises `OvertoneError` where the model's accuracy is not the row's.
    """
    found = evaluate(model, data.val, mean=data.mean, std=data.std, device="cpu")
    if abs(found.top1 - row["val_top1"]) > MAX_DISAGREEMENT:
        raise OvertoneError(
            f"The packed model of trial {row['trial']} has val_top1 {found.top1}, the ledger says {row['val_top1']}."
        )
    test = evaluate(model, data.test, mean=data.mean, std=data.std, device="cpu")
    return {
        "study": study,
        **{name: row[name] for name in _FIGURES if name in row},
        "dataset": spec.data.label,
        "seed": spec.seed,
        "epochs": spec.epochs,
        "blocks": row["blocks"],
        "val_n": found.n,
        "test_top1": test.top1,
        "test_top5": test.top5,
        "test_n": test.n,
        **_over_seeds(ledger, study, row["trial"]),
    }


def _over_seeds(ledger: Ledger, study: str, trial: str) -> dict[str, Any]:
    """The trial's accuracy over the seeds that it was run with; only how many there are where it is one."""
    trials = ledger.trials(study)
    alone = trials.filter(pc.equal(trials.column("trial"), trial))
    (found,) = confidence(alone, ledger.repeats(study), ledger.objectives(study)).to_pylist()
    names = ("seeds", "val_top1_mean", "val_top1_low", "val_top1_high", "val_top1_repeats")
    return {name: found[name] for name in (names if found["seeds"] > 1 else names[:1])}
