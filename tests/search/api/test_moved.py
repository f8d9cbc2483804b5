"""Studies whose weights and images have moved to another folder, from Python and from the command line."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from layers import UsageError
from results.ledger.ledger import Ledger
from search.api.create import load_study
from search.api.study import Study
from search.commands.cli import run
from search.export import verify
from search.runner.cluster import Resources
from search.study.plan import StudyPlan
from search.study.workload import Workload
from spaces import build_model, load_model, save_weights
from trainers.data import Data, DataSpec
from trainers.evaluation import predict_logits


@pytest.fixture
def study(
    run_alone: Callable[[StudyPlan], str],
    ledger: Ledger,
    plan: StudyPlan,
    tmp_path: Path,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> Study:
    """A study whose trial has no model any more, and whose weights and images are in `new` instead of `old`."""
    monkeypatch.chdir(tmp_path)
    old = tmp_path / "old"
    for part, count in (("train", 16), ("val", 4)):
        for label in ("bee", "cat"):
            (old / "images" / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 256, (10, 10, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(old / "images" / part / label / f"{number}.png")
    save_weights(build_model("resnet8", classes=2, channels=3), old / "w.safetensors", {})
    data = DataSpec(name=f"imagefolder:{old / 'images'}", image_size=8)
    run_alone(dataclasses.replace(plan, weights=str(old / "w.safetensors"), data=data, epochs=0))
    for digest in ledger.models():
        ledger.model_path(digest).unlink()
    shutil.move(old, tmp_path / "new")
    return Study(ledger, "s")


@pytest.fixture
def runs_nothing(monkeypatch: pytest.MonkeyPatch) -> list[Workload]:
    """What would be run, without Ray."""
    loaded: list[Workload] = []

    def run_study(study: Any, workload: Workload, *rest: Any) -> Any:
        loaded.append(workload)
        return type("Result", (), {"done": 1, "wanted": 1, "exhausted": False})()

    def confirm_trials(study: Any, rows: Any, workload: Workload, **rest: Any) -> Any:
        loaded.append(workload)
        return type("Result", (), {"done": 1, "wanted": 1, "failed": 0})()

    monkeypatch.setattr("search.runner.launch.run_study", run_study)
    monkeypatch.setattr("search.runner.confirm.confirm_trials", confirm_trials)
    return loaded


def test_a_study_goes_on_with_what_has_moved_and_its_record_stays(study: Study, runs_nothing: list[Workload]) -> None:
    before = study.record()
    hints = r"--weights \(in Python weights=\) says where .* and --data \(in Python data=\) says where the data are now"
    with pytest.raises(UsageError, match=hints):
        study.optimize(progress=False)
    moved = load_study("s", store=study.ledger.store, weights="new/w.safetensors", data="new/images")
    moved.optimize(progress=False)
    moved.confirm(1, resources=Resources(gpus_per_trial=0), progress=False)
    assert [workload.weights_sha256 for workload in runs_nothing] == [before["weights_sha256"]] * 2
    assert [workload.data.fingerprint for workload in runs_nothing] == [before["data_fingerprint"]] * 2
    assert moved.record() == before


def test_other_content_is_refused_wherever_it_is(study: Study, runs_nothing: list[Workload]) -> None:
    save_weights(build_model("resnet8", classes=2, channels=3), Path("other.safetensors"), {})
    other = load_study("s", store=study.ledger.store, weights="other.safetensors", data="new/images")
    with pytest.raises(UsageError, match=r"study 's' exists with weights_sha256 '.*', '.*' was given"):
        other.optimize(progress=False)
    (Path("new/images/train/bee/0.png")).unlink()
    other = load_study("s", store=study.ledger.store, weights="new/w.safetensors", data="imagefolder:new/images")
    with pytest.raises(UsageError, match=r"study 's' exists with data_fingerprint '.*', '.*' was given"):
        other.optimize(progress=False)
    assert runs_nothing == []


def test_commands_take_where_they_are(
    study: Study, runs_nothing: list[Workload], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.commands.studies.print_search_result", lambda *_: None)
    monkeypatch.setattr("search.commands.studies.confirm_line", lambda *_: "")
    common = ["--study", "s", "--store", study.ledger.store.uri]
    places = ["--weights", "new/w.safetensors", "--data", "new/images"]
    assert run(["resume", *common]) == 2
    assert "--data (in Python data=) says where the data are now" in capsys.readouterr().err
    assert run(["resume", *common, *places]) == 0
    assert run(["confirm", *common, *places]) == 0
    assert len(runs_nothing) == 2


def test_a_trial_is_trained_again_with_what_has_moved_and_is_the_same_file(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(path: Path, model: str, data: Data, runtime: str) -> list[torch.Tensor]:
        network = load_model(path)
        return [predict_logits(network, split, data.normalize, device="cpu") for split in (data.val, data.test)]

    monkeypatch.setattr(verify, "logits_in_subprocess", read)
    command = ["export", "--study", "s", "--store", study.ledger.store.uri, "--pick", "abc", "--rerun"]
    command += ["--device", "cpu"]
    assert run([*command, "--out", "none"]) != 0
    assert "--data (in Python data=) says where the data are now" in capsys.readouterr().err
    assert run([*command, "--out", "none", "--data", "new/images"]) == 2
    assert "--weights (in Python weights=) says where the weights are now" in capsys.readouterr().err
    assert not Path("none").exists()
    assert run([*command, "--out", "out", "--data", "new/images", "--weights", "new/w.safetensors"]) == 0
    card = json.loads(Path("out/config.json").read_text())
    assert card["same_file"] is True
    assert card["dataset"] == "imagefolder:images"
