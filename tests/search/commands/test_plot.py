import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from results.ledger.ledger import Ledger
from search.study.plan import StudyPlan

Overtone = Callable[..., tuple[int, str, str]]
SMALL = ("--model", "resnet8", "--image-size", "8", "--channels", "1")


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_filters_of_a_layer_are_drawn(overtone: Overtone, tmp_path: Path, weights: Path, suffix: str) -> None:
    path = tmp_path / f"filters{suffix}"
    given = ("--weights", str(weights), "--layer", "layer3.0.conv1", "--out", str(path))
    assert overtone("plot", "filters", *SMALL, *given) == (0, f"{path}\n", "")
    assert path.read_bytes().startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")
    assert b"random start" not in path.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_the_errors_of_a_layers_filters_are_json(overtone: Overtone, tmp_path: Path, weights: Path) -> None:
    path = tmp_path / "filters.png"
    given = ("--weights", str(weights), "--layer", "conv1", "--out", str(path), "--json")
    code, out, _ = overtone("plot", "filters", *SMALL, *given)
    taps = load_file(weights)["conv1.weight"].double()
    share = (taps - taps.mean((2, 3), keepdim=True)).flatten(2).norm(dim=2) / taps.flatten(2).norm(dim=2)
    found = json.loads(out)
    assert (code, found["out"], found["layer"]) == (0, str(path), "conv1")
    assert found["errors"].keys() == {"cosine", "chebyshev"}
    for errors in found["errors"].values():
        assert list(errors) == ["3x2", "2x3", "2x2", "1x1"]
        assert errors["1x1"] == pytest.approx(float(share.mean()), rel=1e-9)
        assert errors["1x1"] > errors["2x2"] > max(errors["2x3"], errors["3x2"])


def test_filters_rebuilt_from_templates_are_drawn(overtone: Overtone, tmp_path: Path, weights: Path) -> None:
    path = tmp_path / "filters.png"
    given = ("--weights", str(weights), "--layer", "layer1.0.conv1", "--pruning-rate", "0.5", "--out", str(path))
    code, out, _ = overtone("plot", "rebuilt", *SMALL, *given, "--json")
    found = json.loads(out)
    assert (code, found["out"], found["layer"]) == (0, str(path), "layer1.0.conv1")
    assert list(found["errors"]) == ["scalar", "rotation", "affine", "zero"]
    assert found["errors"]["scalar"] < found["errors"]["zero"] == 1.0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_rates_of_one_threshold_are_drawn(overtone: Overtone, tmp_path: Path) -> None:
    base = ("plot", "rates", "--model", "resnet8", "--pruning-rate", "0.5", "--json", "--out")
    digits = ("--dataset", "digits")
    for more, kinds in (
        ((), ["magnitude"]),
        (digits, ["magnitude", "gradient"]),
        ((*digits, "--saliency", "gradient"), ["gradient"]),
    ):
        path = tmp_path / f"{len(more)}.png"
        code, out, _ = overtone(*base, str(path), *more)
        found = json.loads(out)
        assert (code, found["out"], found["pruning_rate"], list(found["rates"])) == (0, str(path), 0.5, kinds)
        assert list(found["rates"][kinds[0]]) == ["conv1", "layer1", "layer2", "layer3"]
        assert path.read_bytes().startswith(b"\x89PNG")
    code, _, err = overtone(*base, str(tmp_path / "rates.gif"))
    assert (code, err.endswith("rates.gif') must end in .png or .svg\n")) == (2, True)


def test_rates_are_those_of_the_blocks_and_templates_that_are_asked_for(overtone: Overtone, tmp_path: Path) -> None:
    base = ("plot", "rates", *SMALL, "--pruning-rate", "0.75", "--out", str(tmp_path / "rates.png"), "--json")
    _, out, _ = overtone(*base, "--granularity", "layer", "--minimum-templates", "1")
    fewest = json.loads(out)["rates"]["magnitude"]
    _, out, _ = overtone(*base, "--granularity", "layer", "--minimum-templates", "16")
    most = json.loads(out)["rates"]["magnitude"]
    assert {"layer1.0.conv1", "layer3.0.conv2"} <= fewest.keys() == most.keys()
    assert most["conv1"] == most["layer1.0.conv1"] == 0 < fewest["conv1"]


def test_filters_without_weights_are_named_random(overtone: Overtone, tmp_path: Path) -> None:
    path = tmp_path / "filters.svg"
    given = ("plot", "filters", "--model", "resnet8", "--layer", "conv1", "--out", str(path))
    code, out, err = overtone(*given)
    assert (code, out) == (0, f"{path}\n")
    assert err == "no weights were given: these are the filters of a random start\n"
    first = path.read_text()
    assert "resnet8 conv1 (random start)" in first
    overtone(*given)
    assert path.read_text() == first


def test_a_front_is_drawn(
    overtone: Overtone, ledger: Ledger, plan: StudyPlan, run_alone: Callable[[StudyPlan], str], tmp_path: Path
) -> None:
    study, path = run_alone(plan), tmp_path / "front.svg"
    base = ("plot", "front", "--study", study, "--store", str(tmp_path / "runs"), "--out")
    assert overtone(*base, str(path)) == (0, f"{path}\n", "")
    assert path.read_bytes().startswith(b"<?xml")
    code, out, _ = overtone(*base, str(path), "--json")
    assert (code, json.loads(out)) == (0, {"out": str(path), "study": study})
