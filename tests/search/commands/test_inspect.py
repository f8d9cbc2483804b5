import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from layers import UsageError
from search.api import create
from search.study.plan import StudyPlan
from search.study.workload import Workload, make_space

Overtone = Callable[..., tuple[int, str, str]]
PARTS = ("weights", "gradients", "optimizer", "activations", "validation", "images")


def test_the_space_is_counted(overtone: Overtone) -> None:
    code, out, _ = overtone("inspect", "--model", "resnet20", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["trial"] is None
    names = [block["block"] for block in found["blocks"]]
    assert names == ["conv1", "layer1", "layer2", "layer3", "linear", "norms_and_biases"]
    assert found["uncompressed"]["parameters"] == 269_722
    assert found["least"]["size_bytes"] < found["uncompressed"]["size_bytes"] / 50
    size = 1
    for block in found["blocks"]:
        for values in block["choices"].values():
            size *= len(values)
    assert size == found["space_size"]


def test_time_and_memory_of_a_trial_are_estimated(overtone: Overtone) -> None:
    asked = ("inspect", "--model", "resnet8", "--dataset", "digits", "--device", "cpu", "--batch-size", "32")
    code, out, _ = overtone(*asked, "--epochs", "3")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("a trial: about ")]
    assert f" on cpu ({torch.get_num_threads()} thread" in line
    assert line.endswith(" GFLOPs of fine-tuning")
    assert "activations" in out
    code, out, _ = overtone(*asked, "--precision", "fp32", "--json")
    trial = json.loads(out)["trial"]
    assert trial["images_bytes"] == (1078 + 360) * (64 + 8)
    assert trial["gradients_bytes"] == trial["optimizer_bytes"] == 4 * json.loads(out)["uncompressed"]["parameters"]
    assert trial["memory_bytes"] == sum(trial[f"{part}_bytes"] for part in PARTS)
    assert trial["seconds"] == trial["training_s"] + trial["validation_s"] > 0


def test_what_the_recipe_adds_to_a_trial_is_counted(overtone: Overtone) -> None:
    held = []
    for more in (("--distillation", "0"), (), ("--set", "ema_decay=0.99")):
        _, out, _ = overtone("inspect", "--model", "resnet8", "--dataset", "digits", "--json", *more)
        held.append(json.loads(out)["trial"]["weights_bytes"])
    assert held == [held[0], 2 * held[0], 3 * held[0]]


def test_data_space_and_single_layers_are_taken(overtone: Overtone, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("all: {bits: [8, 4]}\nlayer3.0.conv2: {harmonics: [2], pruning_rate: none}\n")
    given = ("--dataset", "digits", "--granularity", "layer", "--space", str(space), "--json")
    code, out, _ = overtone("inspect", "--model", "resnet8", *given)
    assert code == 0
    found = json.loads(out)
    assert found["trial_flops"] == 3 * found["uncompressed"]["flops"] * 1078 * 5
    choices = {block["block"]: block["choices"] for block in found["blocks"]}
    assert choices["layer3.0.conv2"]["harmonics_y"] == choices["layer3.0.conv2"]["harmonics_x"] == [2]
    assert choices["layer3.0.conv2"]["pruning_rate"] == [None]
    assert all(block["bits"] == [8, 4] for block in choices.values())


@pytest.mark.parametrize(
    "given",
    [
        (),
        ("--minimum-templates", "2"),
        ("--minimum-templates", "32", "--granularity", "layer"),
        ("--space", "limits.yaml", "--saliency", "gradient", "--train-limit", "96", "--minimum-templates", "4"),
        ("--space", "limits.yaml", "--val-from", "test", "--granularity", "layer", "--epochs", "0"),
    ],
)
def test_the_space_is_the_one_that_a_search_with_the_same_options_searches(
    overtone: Overtone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: Path, given: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("limits.yaml").write_text("all: {pruning_rate: [none, global 0.5, global 0.8], bits: [6, none]}\n")
    plans: list[StudyPlan] = []

    def capture(ledger: object, study: str, plan: StudyPlan, *_: Any, **__: Any) -> None:
        plans.append(plan)
        raise UsageError("captured")

    monkeypatch.setattr(create, "begin_study", capture)
    network = ("--model", "resnet8", "--weights", str(weights), "--dataset", "digits", *given)
    assert overtone("search", *network, "--study", "s")[2] == "overtone: captured\n"
    workload = Workload.load(plans[0])
    space = make_space(workload.resolved(plans[0]), workload.network)
    code, out, err = overtone("inspect", *network, "--device", "cpu", "--json")
    assert code == 0, err
    shown = {block["block"]: block["choices"] for block in json.loads(out)["blocks"]}
    assert shown == {block: {knob: list(v) for knob, v in knobs.items()} for block, knobs in space.choices.items()}
    assert json.loads(out)["space_size"] == space.size


def test_global_rates_are_resolved_without_data_by_magnitude_alone(overtone: Overtone, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("all: {pruning_rate: [none, global 0.5]}\n")
    asked = ("inspect", "--model", "resnet8", "--image-size", "8", "--channels", "1", "--space", str(space), "--json")
    code, out, _ = overtone(*asked)
    rates = {block["block"]: block["choices"].get("pruning_rate") for block in json.loads(out)["blocks"]}
    assert (code, rates["layer3"][0], len(rates["layer3"])) == (0, None, 2)
    code, _, err = overtone(*asked, "--saliency", "gradient")
    assert (code, err) == (2, "overtone: saliency (='gradient') must be 'magnitude' without labeled training images\n")


def test_the_shape_is_told_by_options_or_by_the_data(overtone: Overtone) -> None:
    code, out, _ = overtone("inspect", "--model", "resnet8", "--image-size", "8", "--channels", "1", "--classes", "7")
    assert (code, out.splitlines()[0].strip()) == (0, "resnet8 on 1x8x8 images, 7 classes")
    digits = ("inspect", "--model", "resnet8", "--dataset", "digits")
    code, _, err = overtone(*digits, "--classes", "10")
    assert (code, err) == (2, "overtone: classes (=10) must be left out with a data set, whose images tell it\n")
    code, _, err = overtone(*digits, "--image-size", "8")
    assert (code, err[:50]) == (2, "overtone: image_size (=8) must be left out for 'di")
    for name, value in ("mean", "0.5"), ("std", "1"), ("resize-size", "9"), ("interpolation", "bicubic"):
        code, _, err = overtone("inspect", "--model", "resnet8", f"--{name}", value)
        assert code == 2
        assert err.endswith("must be left out without --dataset: there are no images\n")


def test_the_first_lines_say_how_images_are_normalized(overtone: Overtone) -> None:
    digits = ("inspect", "--model", "resnet8", "--dataset", "digits", "--device", "cpu", "--epochs", "0")
    code, out, _ = overtone(*digits)
    lines = " ".join(line.strip() for line in out.splitlines()[1:3])
    assert code == 0
    assert "1x8x8 normalized by mean 0.3053 and std 0.3759 of pixels in [0, 1] (the digits' own, as none were" in lines
    code, out, _ = overtone(*digits, "--channels", "3", "--mean", "0.5", "--std", "1,0.5,0.25", "--json")
    expected = {"shape": [3, 8, 8], "classes": 10, "mean": [0.5] * 3, "std": [1.0, 0.5, 0.25]}
    assert (code, json.loads(out)["images"]) == (0, expected)
    for wrong in ("a", "", "1,,2"):
        code, _, err = overtone(*digits, "--mean", wrong, "--std", "1")
        assert (code, err[:40]) == (2, f"overtone: mean (={wrong!r}) must be a number, or"[:40])
    code, _, err = overtone(*digits, "--mean", "1,2", "--std", "1")
    assert (code, err) == (2, "overtone: mean (=[1.0, 2.0]) must be one number, or one for each of 1 channels\n")


def test_weights_are_read_only_where_they_fit(overtone: Overtone, weights: Path) -> None:
    base = ("inspect", "--model", "resnet8", "--weights", str(weights))
    assert overtone(*base, "--image-size", "8", "--channels", "1", "--json")[0] == 0
    code, _, err = overtone(*base)
    assert code == 2
    assert "'conv1.weight' is (16, 1, 3, 3), not (16, 3, 3, 3)" in err


def test_a_key_that_comes_twice_is_refused(overtone: Overtone, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("layer1:\n  bits: [4]\nlayer2:\n  bits: [4]\n  groups: [1]\n  bits: [8]\n")
    code, _, err = overtone("inspect", "--model", "resnet8", "--space", str(space))
    assert code == 2
    assert "must be a readable YAML file: found 'bits' twice" in err
    assert "line 4" in err
    space.write_text("layer1: &some\n  bits: [4]\nlayer2:\n  <<: *some\n  groups: [1]\n")
    assert overtone("inspect", "--model", "resnet8", "--space", str(space))[0] == 0


def test_a_runtime_takes_the_latency_of_the_uncompressed_network(overtone: Overtone) -> None:
    code, out, err = overtone("inspect", "--model", "resnet8", "--runtime", "torch", "--latency-threads", "1", "--json")
    assert (code, err) == (0, "")
    latency = json.loads(out)["latency"]
    assert (latency["latency_runtime"], latency["latency_threads"]) == ("torch", 1)
    assert latency["seconds"] > 0.064 * latency["latency_ms"] > 0
    assert overtone("inspect", "--model", "resnet8", "--runtime", "tvm")[0] == 2
