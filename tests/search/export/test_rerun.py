"""Trials whose models were not kept, trained again for an export."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from layers import OvertoneError, UsageError
from results.ledger.ledger import Ledger
from results.schema import TrialRow
from search.api.study import Study
from search.commands.cli import run
from search.export import verify
from search.export.verify import export_trial
from search.study.plan import StudyPlan
from spaces import build_model, load_model, save_weights
from trainers.data import Data
from trainers.evaluation import predict_logits

RunAlone = Callable[[StudyPlan], str]


def _lost(ledger: Ledger, **changes: Any) -> TrialRow:
    """The trial's row with some changes, and no model in the store."""
    row = dataclasses.replace(TrialRow.from_record(ledger.trials("s").to_pylist()[0]), **changes)
    for digest in ledger.models():
        ledger.model_path(digest).unlink()
    if changes:
        ledger.store.delete(ledger.store.list("trials/study=s")[0])
        ledger.append(row)
    return row


def _again(ledger: Ledger, out: Path, log: Callable[[str], object] = print) -> dict[str, Any]:
    row = Study(ledger, "s").trial("abc").row
    return export_trial(ledger, "s", row, format="safetensors", out=out, rerun_on=torch.device("cpu"), log=log)


@pytest.fixture
def _read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exported files are read in this process, which is faster."""

    def read(path: Path, model: str, data: Data, runtime: str) -> list[torch.Tensor]:
        network = load_model(path)
        return [predict_logits(network, split, data.normalize, device="cpu") for split in (data.val, data.test)]

    monkeypatch.setattr(verify, "logits_in_subprocess", read)


def test_a_trial_trained_again_is_the_same_file_bit_for_bit(
    ledger: Ledger, plan: StudyPlan, run_alone: RunAlone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_alone(plan)
    row = _lost(ledger)
    asked = ["export", "--study", "s", "--store", ledger.store.uri, "--out", str(tmp_path / "out")]
    assert run(asked) == 1
    assert "was not kept (--keep front): add --rerun (rerun=True) to train it again, 1 epoch" in capsys.readouterr().err
    assert run([*asked, "--rerun", "--device", "tpu"]) == 2
    assert "device (='tpu') must be cpu" in capsys.readouterr().err
    assert run([*asked, "--rerun", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert "epoch 1/1: train_loss" in err
    assert "trial abc, trained again, is the same file bit for bit" in err
    assert "the exported file gives the trial's class for all 360 validation images" in " ".join(out.split())
    assert ledger.models() == {row.model_sha256}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["same_file"] is True
    assert {path.name for path in tmp_path.iterdir()} == {"m.safetensors", "out", "runs"}
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()


@pytest.mark.usefixtures("_read_here")
def test_a_trial_is_trained_again_with_the_threads_that_it_had(
    ledger: Ledger, plan: StudyPlan, run_alone: RunAlone, tmp_path: Path
) -> None:
    torch.set_num_threads(2)
    try:
        run_alone(plan)
    finally:
        torch.set_num_threads(1)
    _lost(ledger)
    assert _again(ledger, tmp_path / "out")["same_file"] is True
    assert torch.get_num_threads() == 1


@pytest.mark.usefixtures("_read_here")
def test_what_was_interrupted_goes_on(ledger: Ledger, plan: StudyPlan, run_alone: RunAlone, tmp_path: Path) -> None:
    run_alone(dataclasses.replace(plan, epochs=2))
    row, lines = _lost(ledger), []

    def stop(line: str) -> None:
        lines.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _again(ledger, tmp_path / "out", stop)
    assert (tmp_path / "out.checkpoint").exists()
    assert not (tmp_path / "out").exists()
    assert _again(ledger, tmp_path / "out", lines.append)["model_sha256"] == row.model_sha256
    assert [line.split(":")[0] for line in lines[:3]] == ["epoch 1/2", lines[1], "epoch 2/2"]
    assert lines[1] == f"going on from {tmp_path / 'out.checkpoint'}"
    assert not (tmp_path / "out.checkpoint").exists()


@pytest.mark.usefixtures("_read_here")
def test_another_file_is_taken_where_it_is_as_accurate(
    ledger: Ledger, plan: StudyPlan, run_alone: RunAlone, tmp_path: Path
) -> None:
    run_alone(plan)
    (digest,) = ledger.models()
    row, lines = _lost(ledger, model_sha256="0" * 64), []
    card = _again(ledger, tmp_path / "near", lines.append)
    assert (card["same_file"], card["model_sha256"], card["score"]) == (False, digest, row.score)
    assert "is another file (another device or version)" in lines[-1]
    assert "This is the trial trained again: another file" in (tmp_path / "near" / "README.md").read_text()
    assert not ledger.models()

    _lost(ledger, score=(row.score or 0) + 0.006)
    with pytest.raises(
        OvertoneError, match=r"trained again on cpu, has val_top1 .*, the ledger has .*: nothing was written"
    ):
        _again(ledger, tmp_path / "far")
    assert {path.name for path in tmp_path.iterdir()} == {"m.safetensors", "near", "runs"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), r"weights \(='.*mine\.safetensors'\) must be a file or one of"),
        (
            lambda path: save_weights(build_model("resnet8", classes=10, channels=1), path, {}),
            r"weights_sha256 \(=.*\) must be that of .*mine\.safetensors",
        ),
    ],
    ids=["gone", "others"],
)
def test_a_trial_without_its_weights_cannot_be_trained_again(
    ledger: Ledger,
    plan: StudyPlan,
    run_alone: RunAlone,
    weights: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    message: str,
) -> None:
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(weights.read_bytes())
    run_alone(dataclasses.replace(plan, weights=str(mine), epochs=0))
    _lost(ledger)
    change(mine)
    with pytest.raises(UsageError, match=message):
        _again(ledger, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
