import dataclasses
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from torch import nn

from layers import OvertoneError, UsageError
from results.ledger import Ledger
from results.schema import TrialRow
from search import verify
from search.record import finished_row
from search.study import StudyPlan
from search.subject import Subject
from search.verify import export_trial
from spaces import BlockConfig, NetworkConfig, load_model
from trainers.trial import Trial

CONFIG = NetworkConfig(blocks={"layer3": BlockConfig(basis="cosine", harmonics=(2, 2), bits=6, exponent_block=16)})


@pytest.fixture
def study(ledger: Ledger, plan: StudyPlan, tmp_path: Path) -> str:
    """A study of one trial, run without Ray."""
    subject = Subject.of(plan)
    ledger.create_study("s", {**plan.to_record(), **subject.identity(), "uncompressed": subject.reference()})
    spec = plan.spec(CONFIG, **subject.identity())
    trial = Trial(spec, data=subject.data, baseline=subject.baseline, network=subject.network, device="cpu")
    for _ in trial.epochs():
        pass
    trial.save(tmp_path / "m.safetensors")
    report = {"result": json.dumps(trial.result().to_json()), "started": datetime.now(UTC).isoformat(), "device": "cpu"}
    suggestion = {"trial": "abc", "number": 0, "spec": spec.to_json()}
    ledger.append(finished_row("s", suggestion, report, ledger.put_model(tmp_path / "m.safetensors")))
    return "s"


@pytest.mark.parametrize("format", ["safetensors", "onnx", "pt2"])
@pytest.mark.filterwarnings("ignore")
def test_an_export_is_proven_and_tells_test_accuracy(ledger: Ledger, study: str, tmp_path: Path, format: str) -> None:
    card = export_trial(ledger, study, "knee", where=None, format=format, out=tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"model.{format}", "config.json", "README.md"}
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["test_top1"] == card["test_top1"]
    row = ledger.trials(study).to_pylist()[0]
    assert told["val_top5"] == card["val_top5"] == row["val_top5"] == row["curve"][-1]["val_top5"] > row["val_top1"]
    assert 1 >= card["test_top5"] > card["test_top1"]
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"- test top-5: {100 * card['test_top5']:.2f} % of n = 359 images" in text
    assert "latency" not in text
    assert (told["val_n"], told["test_n"]) == (360, 359)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


def test_a_card_tells_the_accuracy_over_seeds(ledger: Ledger, study: str, tmp_path: Path) -> None:
    export_trial(ledger, study, "abc", where=None, format="safetensors", out=tmp_path / "one")
    assert "One training run of a single seed." in (tmp_path / "one" / "README.md").read_text()
    row = TrialRow.from_record(ledger.trials(study).to_pylist()[0])
    accuracies = [row.val_top1 or 0, 0.25, 0.35]
    for seed, value in enumerate(accuracies[1:], 1):
        ledger.append(dataclasses.replace(row, trial=f"r{seed}", confirms="abc", seed=seed, val_top1=value))
    card = export_trial(ledger, study, "abc", where=None, format="safetensors", out=tmp_path / "three")
    assert (card["seeds"], card["val_top1_repeats"]) == (3, pytest.approx(0.3))
    assert card["val_top1_mean"] == pytest.approx(sum(accuracies) / 3)
    text = (tmp_path / "three" / "README.md").read_text()
    low, high = (f"{100 * card[f'val_top1_{side}']:.2f}" for side in ("low", "high"))
    assert "Trained with 3 seeds, of which this is the first" in text
    assert (
        f"{100 * card['val_top1_mean']:.2f} % (95 % interval of Student's t over the seeds, {low} to {high} %)" in text
    )
    assert "single seed" not in text


def test_a_file_that_says_something_else_is_not_exported(
    ledger: Ledger, study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(*paths: object, **options: object) -> nn.Module:
        model = load_model(*paths, **options)  # type: ignore[arg-type]
        if "export" in str(paths[0]):
            with torch.no_grad():
                model.linear.bias[3] += 100.0
        return model

    monkeypatch.setattr(verify, "load_model", spoiled)
    with pytest.raises(OvertoneError, match="The exported safetensors gives another class than trial abc for"):
        export_trial(ledger, study, "best", where=None, format="safetensors", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


def test_a_model_that_is_not_the_ledgers_is_not_exported(ledger: Ledger, study: str, tmp_path: Path) -> None:
    row = ledger.trials(study).to_pylist()[0]
    kept = ledger.model_path(row["model_sha256"])
    shutil.copy(kept, tmp_path / "copy.safetensors")
    kept.unlink()
    with pytest.raises(OvertoneError, match="it does not exist"):
        export_trial(ledger, study, "abc", where=None, format="safetensors", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"which": "nope"}, "pick 'nope' names none of its trials"),
        ({"format": "tflite"}, "format 'tflite' is unknown; allowed are safetensors, onnx, pt2"),
        ({"where": "size_bytes < "}, "is refused"),
    ],
)
def test_wrong_use_is_named(
    ledger: Ledger, study: str, tmp_path: Path, arguments: dict[str, str], message: str
) -> None:
    wanted = {"which": "knee", "where": None, "format": "safetensors", **arguments}
    with pytest.raises(UsageError, match=message):
        export_trial(ledger, study, wanted["which"], where=wanted["where"], format=wanted["format"], out=tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_folder_in_use_is_left_alone(ledger: Ledger, study: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(UsageError, match="must be a new or empty folder"):
        export_trial(ledger, study, "knee", where=None, format="safetensors", out=tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "x"
