"""Two stores with a study `demo`: one of many made-up trials to ask, one of a real trial whose model is kept."""

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from results.ledger.effects import EffectsLibrary
from results.ledger.ledger import Ledger
from results.ledger.store import Store
from results.schema import TrialRow, TrialStatus
from search.study.plan import StudyPlan
from search.study.record import finished_row
from search.study.workload import Workload
from spaces import BlockConfig, NetworkConfig, build_model, save_weights
from spaces.effects import Effect, Effects
from trainers.data import DataSpec
from trainers.trial import run_trial

METRICS = {"val_top1": 0.9, "val_top5": 0.99, "val_loss": 0.4}
BASELINE = {
    "score": 0.9,
    "metrics": METRICS,
    "val_images": 360,
    "parameters": 78_000,
    "size_bytes": 312_000,
    "flops": 9_000_000,
    "macs": 4_500_000,
}
KNOBS = ("basis", "harmonics_y", "harmonics_x", "pruning_rate", "groups", "transform", "bits", "exponent_block")
_HALF = BlockConfig(basis="cosine", harmonics=(2, 1), bits=4, exponent_block=16)
EFFECT = Effect(
    block="layer3",
    config=_HALF,
    loss=0.5,
    divergence=0.25,
    divergence_error=0.02,
    score=0.85,
    seconds=0.1,
    bytes_saved=200_000,
    flops_saved=300_000,
)
EFFECTS = Effects(loss=0.25, score=0.9, images=256, calibration_images=128, seed=0, effects=(EFFECT,))
RULE = ("held_out_error", "held_out_factor")
SMALL = NetworkConfig(blocks=dict.fromkeys(("layer1", "layer2", "layer3"), _HALF))
"""A ResNet-8 of less than 20 kB."""


def _row(number: int, rng: np.random.Generator, spec: str, **changes: Any) -> TrialRow:
    begun = datetime.now(UTC) + timedelta(seconds=number)
    blocks = []
    for name in ("conv1", "layer3"):
        series = {"basis": "cosine", "harmonics_y": int(rng.integers(1, 3)), "harmonics_x": 2} if number % 3 else {}
        bits = {"bits": 4 + 2 * int(rng.integers(3)), "exponent_block": 16}
        blocks.append({"block": name, **dict.fromkeys(KNOBS), **series, **bits})
    top1 = np.sort(rng.uniform(0.85, 0.95, 3))
    measured = [{"score": float(v), "metrics": {**METRICS, "val_top1": float(v)}} for v in top1]
    history = [
        {"epoch": i + 1, "train_loss": 1.0 / (i + 1), **measured[i], "lr": 0.01, "seconds": 1.0} for i in range(3)
    ]
    values: dict[str, Any] = {
        **dict.fromkeys(("model", "dataset", "init", "config_digest", "spec_digest"), "x"),
        "study": "demo",
        "trial": f"{number:010x}",
        "number": number,
        "status": TrialStatus.FINISHED,
        "spec": spec,
        "seed": 0,
        "epochs": 3,
        "epochs_run": 3,
        "started_at": begun,
        "finished_at": begun,
        **measured[-1],
        "score_name": "val_top1",
        "init_score": 0.2,
        "parameters": 10,
        "macs": 10,
        "blocks": blocks,
        "history": history,
        "size_bytes": int(rng.integers(10_000, 90_000)),
        "flops": int(rng.integers(500_000, 4_000_000)),
    }
    return TrialRow(**{**values, **changes})


@pytest.fixture(scope="session")
def plan(tmp_path_factory: pytest.TempPathFactory) -> StudyPlan:
    """A ResNet-8 from a random start on few digits."""
    weights = tmp_path_factory.mktemp("weights") / "resnet8.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        save_weights(build_model("resnet8", classes=10, channels=1), weights, {})
    data = DataSpec(name="digits", train_limit=96)
    return StudyPlan(model="resnet8", weights=str(weights), data=data, epochs=1, trials=30)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, session_seed: int, plan: StudyPlan) -> Path:
    """A folder whose store `runs` has the study `demo`: 29 trials, one failed, and repeats of one, and sketches."""
    rng, folder = np.random.default_rng(session_seed), tmp_path_factory.mktemp("asked")
    ledger = Ledger(Store(folder / "runs"))
    hashes = {"weights_sha256": "0" * 64, "data_fingerprint": "0" * 64}
    known = {**hashes, "network": {"structure_sha256": "0" * 64, "outputs": [0.5]}}
    ledger.create_study("demo", {**plan.to_record(), **known, "uncompressed": BASELINE, "warm_started": 0})
    EffectsLibrary(ledger.store, ledger.study("demo")).write(EFFECTS, {"held_out": 0} | dict.fromkeys(RULE))
    spec = json.dumps(plan.spec(SMALL, **hashes).to_json())
    for number in range(29):
        ledger.append(_row(number, rng, spec))
    failed = {"status": TrialStatus.FAILED, "error": "out of memory", "score": None, "metrics": {}, "history": ()}
    ledger.append(_row(29, rng, spec, **failed))
    best = ledger.front("demo").column("trial").to_pylist()[-1]
    for seed in (1, 2):
        ledger.append(_row(0, rng, spec, trial=f"repeat{seed}", repeat_of=best, seed=seed))
    untrained = {"status": TrialStatus.SKETCH, "score": None, "metrics": {}, "history": (), "epochs_run": 0}
    for number in range(3):
        ledger.append(_row(number, rng, spec, trial=f"sketch{number}", size_bytes=30_000 + number, **untrained))
    return folder


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory, plan: StudyPlan) -> Path:
    """A folder whose store `runs` has the study `demo` of one trial with its model, and the trial's `spec.json`."""
    folder, workload = tmp_path_factory.mktemp("kept"), Workload.load(plan)
    ledger, spec = Ledger(Store(folder / "runs")), plan.spec(SMALL, **workload.hashes())
    known = {**workload.identity(), "uncompressed": workload.reference(), "warm_started": 0}
    ledger.create_study("demo", {**plan.to_record(), **known})
    trial = run_trial(spec, workload.data, "cpu", on_epoch=lambda epoch: None)
    trial.save(folder / "model.safetensors")
    report = {
        "result": json.dumps(trial.result().to_json()),
        "started": datetime.now(UTC).isoformat(),
        "device": "cpu",
        "threads": torch.get_num_threads(),
    }
    suggestion = {"trial": "3c6f3c6f3c", "number": 0, "spec": spec.to_json()}
    shutil.copy(folder / "model.safetensors", folder / "moved.safetensors")
    ledger.append(finished_row("demo", suggestion, report, ledger.put_model(folder / "moved.safetensors")))
    (folder / "spec.json").write_text(json.dumps(spec.to_json()))
    return folder


@pytest.fixture
def work_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Changes to a new folder with a copy of the given one."""

    def change(prepared: Path) -> None:
        shutil.copytree(prepared, tmp_path / "work")
        monkeypatch.chdir(tmp_path / "work")

    return change
