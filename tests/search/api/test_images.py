"""How images are given to a network is in a study's record, in its trials' identity, and said before anything runs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.nn import functional as F

from results.export.model_card import model_card
from results.ledger.ledger import Ledger
from search.api import create
from search.api.create import create_study
from search.api.networks import load_network
from search.commands.cli import run
from search.study.plan import StudyPlan
from search.study.workload import Workload, prepared_data
from spaces import NetworkConfig, build_model, save_weights
from trainers.data import DataSpec, load_data
from trainers.spec import TrialSpec


@pytest.fixture
def unit_weights(tmp_path: Path) -> tuple[Path, Callable[[torch.Tensor], torch.Tensor]]:
    """A network of digits that was trained on pixels in [0, 1], and what it says in a plain loop."""
    data = load_data(DataSpec())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("resnet8", classes=10, channels=1)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
        for _ in range(3):
            for rows in torch.randperm(len(data.train)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(data.train.take(rows) / 255), data.train.labels[rows]).backward()
                optimizer.step()
    path = tmp_path / "unit.safetensors"
    save_weights(model.eval(), path, {})
    return path, lambda images: model(images / 255)


def test_a_network_measures_what_a_plain_loop_does_once_its_normalization_is_given(
    unit_weights: tuple[Path, Callable[[torch.Tensor], torch.Tensor]],
) -> None:
    path, predict = unit_weights
    data = load_data(DataSpec())
    with torch.no_grad():
        plain = float((predict(data.val.take(torch.arange(360))).argmax(1) == data.val.labels).float().mean())
    spec = DataSpec(mean=0, std=1)
    told = Workload.load(StudyPlan(model="resnet8", weights=str(path), data=spec)).reference()
    silent = Workload.load(StudyPlan(model="resnet8", weights=str(path))).reference()
    assert told["score"] == pytest.approx(plain, abs=1e-6)
    assert told["metrics"]["val_loss"] < silent["metrics"]["val_loss"]


def test_the_normalization_is_in_record_identity_and_card(
    ledger: Ledger, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"model": "resnet8", "weights": weights, "data": "digits", "store": ledger.store}
    own = create_study("own", **settings)
    lines = capsys.readouterr().err
    assert (
        "images of 'digits': 1x8x8 normalized by mean 0.3053 and std 0.3759 of pixels in [0, 1] (the digits'" in lines
    )
    unit = create_study("unit", **settings, mean=0.25, std=[0.5])
    assert "mean 0.25 and std 0.5 of pixels in [0, 1]\n" in capsys.readouterr().err
    assert unit.record()["data"]["mean"] == [0.25]
    assert own.record()["data_fingerprint"] != unit.record()["data_fingerprint"]
    plan = StudyPlan.from_record(unit.record())
    workload = Workload.load(plan)
    digests = {
        plan.spec(NetworkConfig(), **Workload.load(p).hashes()).digest(workload.network)
        for p in (plan, StudyPlan.from_record(own.record()))
    }
    assert len(digests) == 2
    spec = TrialSpec.from_json(json.loads(json.dumps(plan.spec(NetworkConfig(), **workload.hashes()).to_json())))
    assert load_data(spec.data).fingerprint == spec.data_fingerprint


def _weights_of_torchvision() -> list[tuple[str, str]]:
    found = []
    for name in ("resnet18", "resnet50", "efficientnet_b0", "inception_v3", "mobilenet_v3_small", "swin_t"):
        found += [(name, weights.name) for weights in torchvision.models.get_model_weights(name)]
    return found


def test_torchvisions_weights_bring_torchvisions_transforms(tmp_path: Path, np_rng: np.random.Generator) -> None:
    for part in ("train", "val"):
        for number, label in enumerate("abab"):
            path = tmp_path / part / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            small = np_rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
            size = (int(np_rng.integers(240, 500)), int(np_rng.integers(240, 500)))
            Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)
    found = _weights_of_torchvision()
    for index in np_rng.choice(len(found), 4, replace=False):
        name, weights = found[index]
        spec = prepared_data(DataSpec(name=f"imagefolder:{tmp_path}", val_from="test"), name, weights)
        data = load_data(spec)
        usual = torchvision.models.get_model_weights(name)[weights].transforms()
        for split in (data.val, data.test):
            for image in data.normalize(split.images):
                paths = sorted((tmp_path / "val").glob("*/*.png"))
                nearest = min(float((usual(Image.open(path)) - image).abs().max()) for path in paths)
                assert nearest < 0.06, (name, weights)  # Pillow rounds between its two passes
        assert load_data(DataSpec(**json.loads(json.dumps(vars(spec))))).fingerprint == data.fingerprint


def test_what_is_given_comes_before_torchvisions_own(tmp_path: Path) -> None:
    plain = DataSpec(name=f"imagefolder:{tmp_path}")
    own = prepared_data(plain, "resnet50", "IMAGENET1K_V2")
    assert (own.image_size, own.resize_size, own.interpolation) == (224, 232, "bilinear")
    assert own.mean == (0.485, 0.456, 0.406)
    given = DataSpec(name=plain.name, image_size=64, mean=0, std=1, interpolation="bicubic")
    assert prepared_data(given, "resnet50", "IMAGENET1K_V2") == replace(given, channels=3)
    gray = DataSpec(name=plain.name, channels=1)
    assert prepared_data(gray, "resnet50", "IMAGENET1K_V2") == gray
    (tmp_path / "IMAGENET1K_V2").touch()
    for model, weights in (("resnet50", str(tmp_path / "IMAGENET1K_V2")), ("resnet8", "DEFAULT"), ("m:f", "DEFAULT")):
        assert prepared_data(plain, model, weights) == plain
    digits = prepared_data(DataSpec(), "resnet50", "DEFAULT")
    assert (digits.mean, digits.channels, digits.image_size) == ((0.485, 0.456, 0.406), 3, None)
    objects = DataSpec(name="object:tensors")
    assert prepared_data(objects, "resnet50", "DEFAULT") == objects


def test_a_study_keeps_the_transforms_of_torchvisions_weights(monkeypatch: pytest.MonkeyPatch, ledger: Ledger) -> None:
    plans: list[StudyPlan] = []

    def stop(plan: StudyPlan, *_: Any) -> None:
        plans.append(plan)
        raise KeyboardInterrupt

    monkeypatch.setattr(Workload, "load", stop)
    with pytest.raises(KeyboardInterrupt):
        create.create_study("s", model="resnet50", weights="IMAGENET1K_V2", data="imagefolder:x", store=ledger.store)
    assert plans[0].to_record()["data"]["resize_size"] == 232


def test_gray_files_fit_a_network_that_takes_color() -> None:
    loaded = load_network("resnet18", data=DataSpec(channels=3, mean=0.5, std=0.5))
    assert loaded.image == (3, 8, 8)
    assert "3x8x8 normalized by mean 0.5, 0.5, 0.5 and std 0.5, 0.5, 0.5" in loaded.images


def test_a_card_says_how_images_are_resized() -> None:
    facts = {
        "model": "m",
        "classes": 2,
        "channels": 3,
        "blocks": [],
        "file_format": "onnx",
        "size_bytes": 1,
        "flops": 1,
    }
    spec = TrialSpec(
        model="m",
        weights="w",
        weights_sha256="0",
        data_fingerprint="0",
        data=DataSpec(name="imagefolder:x", image_size=64, interpolation="bicubic"),
    )
    card = model_card({**facts, "parameters": 1, "spec": spec.to_card()}, 1)
    assert "Resize images to 73 at their shorter side (bicubic), then crop their center." in card


def test_without_images_torchvisions_weights_tell_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.api.networks.load_weights", lambda *_, **__: None)
    for weights, size, expected in (("DEFAULT", None, 240), ("DEFAULT", 64, 64), ("w.safetensors", None, 224)):
        assert load_network("efficientnet_b1", weights=weights, image_size=size).image == (3, expected, expected)


def test_weights_of_ours_bring_the_normalization_that_they_were_trained_with(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, usual = tmp_path / "w.safetensors", tmp_path / "usual.safetensors"
    trained = ["train", "--model", "resnet8", "--train-limit", "64", "--epochs", "1", "--out"]
    assert run([*trained, str(out), "--mean", "0.25", "--std", "0.5"]) == 0
    assert run([*trained, str(usual)]) == 0
    capsys.readouterr()
    settings: dict[str, Any] = {"model": "resnet8", "data": "digits", "train_limit": 64, "store": ledger.store}
    record = create_study("ours", weights=out, **settings).record()
    assert (record["data"]["mean"], record["data"]["std"]) == ([0.25], [0.5])
    assert "normalized by mean 0.25 and std 0.5 of pixels in [0, 1]\n" in capsys.readouterr().err
    assert create_study("given", weights=out, mean=0, std=1, **settings).record()["data"]["mean"] == [0]
    assert create_study("usual", weights=usual, **settings).record()["data"]["mean"] is None
    assert run(["inspect", "--model", "resnet8", "--weights", str(out), "--dataset", "digits", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["images"]
    assert (shown["mean"], shown["std"]) == ([0.25], [0.5])
