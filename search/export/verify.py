"""Export a trial of the ledger, and prove the exported file before it is reported done.

The file is read back in a process of its own and must give the class of every validation image that the packed model of
the trial gives, whose accuracy and size must be the ledger's. Other runtimes add in another order, which now and then
turns the rounding of an activation held in few bits: onnx and pt2 may differ for few images. Then the test split is
read, once, for the model card.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layers import OvertoneError, UsageError
from results.export.export import export_model
from results.ledger.ledger import Ledger
from results.queries.query import pick
from search.export.facts import MAX_DISAGREEMENT, card_facts
from search.export.reader import check_reader, factory_of, predict_in_subprocess
from search.export.rerun import rerun_trial
from spaces import load_model
from spaces.portable import check_format
from trainers.data import Data, load_data
from trainers.evaluation import predict
from trainers.spec import TrialSpec

__all__ = ["export_trial"]


def export_trial(
    ledger: Ledger,
    study: str,
    which: str,
    *,
    where: str | None,
    format: str,
    out: Path,
    rerun_on: torch.device | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write the picked trial (`best`, `knee` or an id) to the folder `out`, verified; what was found.

    Where its model was not kept it is trained again on the device `rerun_on`, which `say` is told of. Raises
    `OvertoneError`, leaving no folder behind, where there is no model, the data changed, or the file does not give the
    trial's predictions.
    """
    check_format(format)
    check_reader(format)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"out (={str(out)!r}) must be a new or empty folder.")
    row = pick(ledger, study, which, where=where)
    _check_model(ledger, study, row, rerun=rerun_on is not None)
    spec = TrialSpec.from_json(json.loads(row["spec"]))
    data = load_data(spec.data)
    if data.fingerprint != spec.data_fingerprint:
        raise OvertoneError(
            f"The data {spec.data.name!r} are not those of trial {row['trial']}: it cannot be verified."
        )
    checkpoint = Path(f"{os.path.abspath(out)}.checkpoint")
    with _packed(ledger, row, data, rerun_on, checkpoint, say) as (packed, row):
        model = load_model(packed, factory=factory_of(spec.model))
        card = card_facts(ledger, study, row, spec, model, data)
        proof: dict[str, Any] = {}

        def prove(file: Path) -> Mapping[str, Any]:
            proof["differing"] = _differing(file, row, spec, model, data)
            return proof

        export_model(packed, out, format=format, card=card, factory=factory_of(spec.model), prove=prove)
    return {**card, **proof}


def _check_model(ledger: Ledger, study: str, row: Mapping[str, Any], *, rerun: bool) -> None:
    if row["model_sha256"] is None:
        raise OvertoneError(f"Trial {row['trial']} of study {study!r} left no model; it {row['status']}.")
    if not rerun and not ledger.has_model(row["model_sha256"]):
        front, epochs = ledger.study(study).get("keep") == "front", row["epochs"]
        raise OvertoneError(
            f"The model of trial {row['trial']} {'was not kept (--keep front)' if front else 'is not in the store'}: "
            f"add --rerun to train it again, {epochs} epoch{'' if epochs == 1 else 's'}."
        )


@contextmanager
def _packed(
    ledger: Ledger,
    row: dict[str, Any],
    data: Data,
    rerun_on: torch.device | None,
    checkpoint: Path,
    say: Callable[[str], None],
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The packed model and the row that it has, where it was kept or not."""
    if rerun_on is None or ledger.has_model(row["model_sha256"]):
        yield ledger.model_path(row["model_sha256"]), row
        return
    again = rerun_trial(ledger, row, data, device=rerun_on, checkpoint=checkpoint, tolerance=MAX_DISAGREEMENT, say=say)
    with again as (packed, changes):
        yield packed, {**row, **changes}


def _differing(file: Path, row: Mapping[str, Any], spec: TrialSpec, model: nn.Module, data: Data) -> int:
    """Validation images for which the exported file says another class than the model; few enough, or an error.

    As many images at most are right in one and wrong in the other, so accuracies are as near as that too.
    """
    format = file.suffix[1:]
    if format == "safetensors" and (held := _payload_bytes(file)) != row["size_bytes"]:
        raise OvertoneError(
            f"The exported safetensors holds {held} bytes of tensors, size_bytes of trial {row['trial']} is "
            f"{row['size_bytes']}: nothing was written."
        )
    ours = predict(model, data.val, mean=data.mean, std=data.std, device="cpu")
    differing = int((ours != predict_in_subprocess(file, spec)).sum())
    if differing > (0 if format == "safetensors" else MAX_DISAGREEMENT * len(data.val)):
        raise OvertoneError(
            f"The exported {format} gives another class than trial {row['trial']} for {differing} of "
            f"{len(data.val)} validation images: nothing was written."
        )
    return differing


def _payload_bytes(file: Path) -> int:
    """Bytes of the tensors of a safetensors file: what its header's length, 8 bytes, and the header leave."""
    with open(file, "rb") as opened:
        return file.stat().st_size - 8 - int.from_bytes(opened.read(8), "little")
