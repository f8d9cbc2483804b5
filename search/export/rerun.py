"""Train a trial of the ledger again, for its packed model, which was not kept.

On the machine that it ran on, with the version of torch that it ran with, the packed file is the same bit for bit.
Elsewhere it is another file, which is taken where it is as accurate.
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

from layers import OvertoneError
from results.ledger.ledger import Ledger
from search.runner.progress import epoch_line
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
    *,
    device: torch.device,
    checkpoint: Path,
    tolerance: float,
    say: Callable[[str], None],
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The packed model of a row's trial, and what it changes in the row: `same_file`, and figures where it is not.

    The same file goes into the store; another one is gone when the context ends. The checkpoint stays after an
    interruption, to go on from. Raises `UsageError` where the weights are gone or others, and `OvertoneError` where
    val_top1 differs by more than `tolerance`.
    """
    trial = _trained(row, data, device, checkpoint, say)
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "model.safetensors"
        trial.save(packed)
        digest = hashlib.sha256(packed.read_bytes()).hexdigest()
        if digest == row["model_sha256"]:
            ledger.put_model(packed)
            checkpoint.unlink(missing_ok=True)
            say(f"Trial {row['trial']}, trained again, is the same file bit for bit.")
            yield packed, {"same_file": True}
        else:
            figures = _figures(trial, row, checkpoint, tolerance, say)
            yield packed, {"same_file": False, **figures, "model_sha256": digest}
            checkpoint.unlink(missing_ok=True)


def _trained(
    row: Mapping[str, Any], data: Data, device: torch.device, checkpoint: Path, say: Callable[[str], None]
) -> Trial:
    spec = TrialSpec.from_json(json.loads(row["spec"]))

    def tell(epoch: Epoch) -> None:
        say(epoch_line(epoch, spec.epochs))

    if checkpoint.exists():
        say(f"Going on from {checkpoint}.")
    count = json.loads(row["environment"]).get("threads") if device.type == "cpu" else None
    with num_threads(count or torch.get_num_threads()):  # with others sums round otherwise
        return run_trial(spec, data, device, on_epoch=tell, checkpoint=checkpoint)


def _figures(
    trial: Trial, row: Mapping[str, Any], checkpoint: Path, tolerance: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """What a trial that gave another file measured, where that is near enough to the row."""
    result = trial.result()
    found = f"val_top1 {result.val_top1:.4f} where the ledger has {row['val_top1']:.4f}"
    if abs(result.val_top1 - row["val_top1"]) > tolerance:
        checkpoint.unlink(missing_ok=True)
        raise OvertoneError(f"Trial {row['trial']}, trained again on {trial.device}, has {found}: nothing was written.")
    say(f"Trial {row['trial']}, trained again, is another file (another device or version), {found}.")
    return {"val_top1": result.val_top1, "val_top5": result.val_top5, "size_bytes": result.cost.size_bytes}
