"""Train a trial of the ledger again, because its packed model was not kept.

On the machine that it ran on, with the same version of torch, the packed file is the same bit for bit. Elsewhere it is
another file, which is accepted if its score is the same within a tolerance.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layers import OvertoneError
from results.ledger.ledger import Ledger
from results.schema import TrialStatus
from search.runner.progress import epoch_line
from search.study.places import RECORDED, Places
from search.study.record import model_score
from trainers.data import Data
from trainers.runtime.threads import num_threads
from trainers.spec import TrialSpec
from trainers.training.loop import Epoch
from trainers.trial import Trial, run_trial

__all__ = ["rerun_trial"]


@contextmanager
def rerun_trial(
    ledger: Ledger,
    row: Mapping[str, Any],
    data: Data,
    module: nn.Module | None = None,
    places: Places = RECORDED,
    *,
    device: torch.device,
    checkpoint: Path,
    tolerance: float,
    log: Callable[[str], None],
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the packed model of a row's trial, and what it changes in the row: `same_file`, and figures if it is not.

    `module` is the uncompressed network if it was given as an object, `places` say where its weights are. The same file
    goes into the store; another one is deleted when the context ends. The checkpoint stays after an interruption, for
    the next call to go on from. `log` is given lines about the progress. Raises `UsageError` if the weights are gone or
    changed, and `OvertoneError` if the score differs by more than `tolerance`.
    """
    trial = _train(row, data, module, places, device, checkpoint, log)
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "model.safetensors"
        trial.save(packed)
        digest = hashlib.sha256(packed.read_bytes()).hexdigest()
        if digest == row["model_sha256"]:
            ledger.put_model(packed)
            checkpoint.unlink(missing_ok=True)
            log(f"trial {row['trial']}, trained again, is the same file bit for bit")
            yield packed, {"same_file": True}
        else:
            figures = _figures(trial, row, checkpoint, tolerance, log)
            yield packed, {"same_file": False, **figures, "model_sha256": digest}
            checkpoint.unlink(missing_ok=True)


def _train(
    row: Mapping[str, Any],
    data: Data,
    module: nn.Module | None,
    places: Places,
    device: torch.device,
    checkpoint: Path,
    log: Callable[[str], None],
) -> Trial:
    spec = TrialSpec.from_json(json.loads(row["spec"]))

    def log_epoch(epoch: Epoch) -> None:
        log(epoch_line(epoch, spec.epochs))

    if checkpoint.exists():
        log(f"going on from {checkpoint}")
    threads = json.loads(row["environment"]).get("threads") if device.type == "cpu" else None
    weights = places.of_weights(spec.weights)
    count = threads or torch.get_num_threads()  # another number of threads rounds sums otherwise
    with num_threads(count), places.hinted(spec.weights, spec.data):
        return run_trial(spec, data, device, on_epoch=log_epoch, checkpoint=checkpoint, module=module, weights=weights)


def _figures(
    trial: Trial, row: Mapping[str, Any], checkpoint: Path, tolerance: float, log: Callable[[str], None]
) -> dict[str, Any]:
    """Return what a trial that gave another file measured, if its score is near enough to the row's."""
    result = trial.result()
    scores = f"{result.score_name} {result.score:.4f}, the ledger has {model_score(row):.4f}"
    if abs(result.score - model_score(row)) > tolerance:
        checkpoint.unlink(missing_ok=True)
        raise OvertoneError(f"trial {row['trial']}, trained again on {trial.device}, has {scores}: nothing was written")
    log(f"trial {row['trial']}, trained again, is another file (another device or version), with {scores}")
    if row["status"] == TrialStatus.SKETCH:
        return {"init_score": result.init_score, "size_bytes": result.cost.size_bytes}
    return {"score": result.score, "metrics": result.metrics, "size_bytes": result.cost.size_bytes}
