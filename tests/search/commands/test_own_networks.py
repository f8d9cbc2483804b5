"""Networks of the user's own on the command line: what cannot be compressed truly is refused before anything runs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from results.ledger.ledger import Ledger
from results.ledger.store import Store
from search.runner import engine
from spaces import build_model, save_weights
from tests.trainers.odd_networks import ByClosure, TwoOutputs

Overtone = Callable[..., tuple[int, str, str]]

NETWORKS = """
import argparse
from torch import nn

print("a word")

class Net(nn.Module):
    def __init__(self, classes, channels, outputs=1):
        super().__init__()
        self.conv, self.head = nn.Conv2d(channels, 12, 3), nn.Linear(12, classes)

    def forward(self, x):
        print("a pass")
        return self.head(self.conv(x).mean((2, 3)))

class Both(Net):
    def forward(self, x, mask):
        return super().forward(x)

def talks(classes, channels):
    argparse.ArgumentParser().parse_args()
    print("a network")
    return Net(classes, channels)

def both(classes, channels):
    return Both(classes, channels)
"""


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"networks_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_json_is_clean_whatever_the_network_prints(overtone: Overtone, networks: str, tmp_path: Path) -> None:
    asked = ("--model", f"{networks}:talks", "--dataset", "digits", "--train-limit", "64")
    code, out, err = overtone("inspect", *asked, "--device", "cpu", "--batch-size", "32", "--json")
    assert code == 0, err
    assert json.loads(out)["blocks"]
    assert {"a word", "a network", "a pass"} <= set(err.splitlines())
    code, out, err = overtone("train", *asked, "--epochs", "1", "--out", str(tmp_path / "w.safetensors"), "--json")
    assert code == 0, err
    assert json.loads(out)


@pytest.mark.parametrize("kind", [ByClosure, TwoOutputs])
def test_inspect_refuses_in_one_sentence(overtone: Overtone, kind: type) -> None:
    name = f"tests.trainers.odd_networks:make_{kind.__name__}"
    shape = ("--image-size", "12", "--channels", "3", "--classes", "4")
    code, out, err = overtone("inspect", "--model", name, *shape, "--json")
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"overtone: model (='{name}') must ")
    if kind is ByClosure:
        assert "'second' runs 0 times" in line


def test_several_inputs_are_refused_in_one_sentence(overtone: Overtone, networks: str) -> None:
    code, out, err = overtone("inspect", "--model", f"{networks}:both", "--json")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("overtone: the network Both cannot take 3x224x224 images: ")
    assert "missing 1 required positional argument: 'mask'" in err


def test_a_search_refuses_before_it_keeps_or_starts_anything(
    overtone: Overtone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "run_trials", lambda *_, **__: pytest.fail("a trial"))
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray"))
    name = "tests.trainers.odd_networks:make_ByDigits"
    save_weights(build_model(name, classes=10, channels=1), tmp_path / "w.safetensors", {})
    asked = ("--model", name, "--weights", str(tmp_path / "w.safetensors"), "--dataset", "digits")
    store = str(tmp_path / "runs")
    code, out, err = overtone(
        "search", *asked, "--study", "s", "--store", store, "--trials", "2", "--train-limit", "64"
    )
    assert (code, out) == (2, "")
    assert f"model (='{name}') must compute the same with its layers replaced: with 'second'" in err.splitlines()[-1]
    assert not Ledger(Store(store)).studies()


def test_a_compressed_network_is_checked_before_it_is_trained(overtone: Overtone, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"blocks": {"second": {"bits": 6}}}))
    asked = ("--model", "tests.trainers.odd_networks:make_ByDigits", "--dataset", "digits", "--train-limit", "64")
    code, out, err = overtone("train", *asked, "--out", str(tmp_path / "w.safetensors"), "--config", str(config))
    assert (code, out) == (2, "")
    assert "must compute the same with its layers replaced: with 'second'" in err
    assert not (tmp_path / "w.safetensors").exists()
