"""Export a trial of the ledger, and prove the exported file before it is reported done.

The model is loaded back from the exported file and must give the class of every validation image that the packed model
of the trial gives, whose accuracy must be the ledger's. Then the test split is read, once, for the model card.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from layers import OvertoneError, UsageError
from results.confidence import confidence
from results.export import export_model
from results.ledger import Ledger
from results.query import pick
from spaces import build_model, load_model
from spaces.models import is_factory
from trainers.data import Data, load_data
from trainers.evaluate import evaluate, predict
from trainers.spec import TrialSpec

__all__ = ["export_trial"]

_NEAR_TIES = 0.005
"""Share of images whose class may turn on the order of additions, which differs with the device and its threads."""


def export_trial(
    ledger: Ledger, study: str, which: str, *, where: str | None, format: str, out: Path
) -> dict[str, Any]:
    """Write the picked trial (`best`, `knee` or an id) to the folder `out`, verified; what was found.

    Raises `OvertoneError`, leaving no folder behind, where the model was not kept, the data changed, or the file does
    not give the trial's predictions.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"out (={str(out)!r}) must be a new or empty folder.")
    row = pick(ledger, study, which, where=where)
    if row["model_sha256"] is None:
        raise OvertoneError(f"Trial {row['trial']} of study {study!r} left no model; it {row['status']}.")
    spec = TrialSpec.from_json(json.loads(row["spec"]))
    data = load_data(spec.data)
    if data.fingerprint != spec.data_fingerprint:
        raise OvertoneError(
            f"The data {spec.data.name!r} are not those of trial {row['trial']}: it cannot be verified."
        )
    packed, factory = ledger.model_path(row["model_sha256"]), _factory(spec.model)
    model = load_model(packed, factory=factory)
    card = {**_card(study, row, spec, model, data), **_over_seeds(ledger, study, row["trial"])}
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        folder = export_model(packed, scratch / "export", format=format, card=card, factory=factory)
        differing = _differing(folder / f"model.{format}", model, data, factory)
        if differing:
            raise OvertoneError(
                f"The exported {format} gives another class than trial {row['trial']} for {differing} of "
                f"{len(data.val)} validation images: nothing was written."
            )
        os.replace(folder, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return card


def _card(study: str, row: dict[str, Any], spec: TrialSpec, model: nn.Module, data: Data) -> dict[str, Any]:
    found = evaluate(model, data.val, mean=data.mean, std=data.std, device="cpu")
    if abs(found.top1 - row["val_top1"]) > _NEAR_TIES:
        raise OvertoneError(
            f"The packed model of trial {row['trial']} has val_top1 {found.top1}, the ledger says {row['val_top1']}."
        )
    test = evaluate(model, data.test, mean=data.mean, std=data.std, device="cpu")
    kept = (
        *("trial", "val_top1", "val_top5", "size_bytes", "flops", "macs", "parameters", "latency_ms", "latency_b64_ms"),
        *("device", "model_sha256"),
    )
    return {
        "study": study,
        **{name: row[name] for name in kept},
        "dataset": spec.data.name,
        "seed": spec.seed,
        "epochs": spec.epochs,
        "blocks": row["blocks"],
        "val_n": found.n,
        "test_top1": test.top1,
        "test_top5": test.top5,
        "test_n": test.n,
    }


def _over_seeds(ledger: Ledger, study: str, trial: str) -> dict[str, Any]:
    """The trial's accuracy over the seeds that it was run with; only how many there are where it is one."""
    trials = ledger.trials(study)
    alone = trials.filter(pc.equal(trials.column("trial"), trial))
    (found,) = confidence(alone, ledger.confirmations(study), ledger.objectives(study)).to_pylist()
    names = ("seeds", "val_top1_mean", "val_top1_low", "val_top1_high", "val_top1_repeats")
    return {name: found[name] for name in (names if found["seeds"] > 1 else names[:1])}


def _differing(path: Path, model: nn.Module, data: Data, factory: Callable[..., nn.Module] | None) -> int:
    """Validation images for which the exported file says another class than the model."""
    readers: dict[str, Callable[[], nn.Module]] = {
        ".safetensors": lambda: load_model(path, factory=factory),
        ".onnx": lambda: _Runtime(path),
        ".pt2": lambda: _Program(path),
    }
    ours, theirs = (
        predict(network, data.val, mean=data.mean, std=data.std, device="cpu")
        for network in (model, readers[path.suffix]())
    )
    return int((ours != theirs).sum())


def _factory(model: str) -> Callable[..., nn.Module] | None:
    """How to build a network of the user's own code: the study named it, so it is the user's choice to run it."""
    return (lambda **shape: build_model(model, **shape)) if is_factory(model) else None


class _Program(nn.Module):
    """A `torch.export` file, called like a network."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._call = torch.export.load(path).module()

    def eval(self) -> _Program:
        """Exported programs have one mode, the one they were exported in."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self._call(x)
        return logits


class _Runtime(nn.Module):
    """An ONNX file in onnxruntime, called like a network."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError:
            raise UsageError("format 'onnx' is verified by onnxruntime: pip install 'overtone[onnx]'.") from None
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (self._input,) = (given.name for given in self._session.get_inputs())

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return torch.from_numpy(self._session.run(None, {self._input: x.contiguous().numpy()})[0])
