import json
from collections.abc import Callable
from pathlib import Path

import pytest

from spaces import read_card

Overtone = Callable[..., tuple[int, str, str]]
TRAIN = ("train", "--model", "resnet8", "--train-limit", "64", "--out", "x.safetensors")


def test_a_baseline_is_told_by_its_scores_own_name(
    overtone: Overtone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = overtone(*TRAIN, "--epochs", "1", "--json")
    answer = json.loads(out)
    assert code == 0, err
    assert list(answer) == ["out", "val_top1", "val_top5", "val_loss", "epochs", "weights_sha256"]
    assert 0 <= answer["val_top1"] <= answer["val_top5"] <= 1
    code, out, _ = overtone(*TRAIN, "--epochs", "1")
    assert (code, out) == (0, f"x.safetensors: val_top1 {answer['val_top1']:.4f} after 1 epoch\n")


def test_a_compressed_network_is_trained_from_a_preset_and_from_a_file(
    overtone: Overtone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [*TRAIN, "--epochs", "2", "--recipe", "templates", "--set", "milestones=1", "--config"]
    code, out, err = overtone(*asked, "cos-from-layer2")
    assert (code, out) == (0, out), err
    assert "after 2 epochs" in out
    assert "epoch 1/2: train_loss" in err
    assert "left" in err
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    card = read_card("x.safetensors")
    assert card["recipe"]["milestones"] == [1.0]
    (tmp_path / "config.json").write_text(json.dumps({"spec": {"format": 2, "config": card["config"]}}))
    first = (tmp_path / "x.safetensors").read_bytes()
    assert overtone(*asked, "config.json")[0] == 0
    assert (tmp_path / "x.safetensors").read_bytes() == first
