import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from search.commands import studies
from search.commands.cli import _run, app, main
from spaces import read_card

TRAIN = ("train", "--model", "resnet8", "--train-limit", "64", "--out", "x.safetensors")
DRAW = ("inspect", "--model", "resnet8", "--filters")


def _overtone(*arguments: str, block: str = "") -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({block.split()})); from search.commands.cli import main; main()"
    )
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def _said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = _run(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    "command",
    ["inspect", "train", "search", "resume", "confirm", "compact", "status", "query", "report", "insight", "export"],
)
def test_help_teaches_with_an_example(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert f"Example: overtone {command} " in " ".join(shown.output.split())


def test_inspect_counts_the_space(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _said(capsys, "inspect", "--model", "resnet20", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["trial"] is None
    assert [block["block"] for block in found["blocks"]] == [
        "conv1",
        "layer1",
        "layer2",
        "layer3",
        "linear",
        "norms_and_biases",
    ]
    assert found["uncompressed"]["parameters"] == 269_722
    assert found["least"]["size_bytes"] < found["uncompressed"]["size_bytes"] / 50
    size = 1
    for block in found["blocks"]:
        for values in block["choices"].values():
            size *= len(values)
    assert size == found["space_size"]


def test_inspect_says_what_a_trial_takes(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("inspect", "--model", "resnet8", "--dataset", "digits", "--device", "cpu", "--batch-size", "32")
    code, out, _ = _said(capsys, *asked, "--epochs", "3")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("a trial: about ")]
    assert f" on cpu ({torch.get_num_threads()} thread" in line
    assert line.endswith(" GFLOPs of fine-tuning")
    assert "activations" in out
    code, out, _ = _said(capsys, *asked, "--precision", "fp32", "--json")
    trial = json.loads(out)["trial"]
    assert trial["images_bytes"] == (1078 + 360) * (64 + 8)
    assert trial["gradients_bytes"] == trial["optimizer_bytes"] == 4 * json.loads(out)["uncompressed"]["parameters"]
    parts = ("weights", "gradients", "optimizer", "activations", "validation", "images")
    assert trial["memory_bytes"] == sum(trial[f"{part}_bytes"] for part in parts)
    assert trial["seconds"] == trial["training_s"] + trial["validation_s"] > 0


def test_inspect_counts_what_the_schedule_adds_to_a_trial(capsys: pytest.CaptureFixture[str]) -> None:
    held = []
    for more in ((), ("--set", "ema_decay=0.99"), ("--set", "ema_decay=0.99", "--distillation", "0.5")):
        _, out, _ = _said(capsys, "inspect", "--model", "resnet8", "--dataset", "digits", "--json", *more)
        held.append(json.loads(out)["trial"]["weights_bytes"])
    assert held == [held[0], 2 * held[0], 3 * held[0]]


def test_inspect_takes_data_space_and_single_layers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("all: {bits: [8, 4]}\nlayer3.0.conv2: {harmonics: [2], pruning_rate: none}\n")
    code, out, _ = _said(
        capsys,
        "inspect",
        "--model",
        "resnet8",
        "--dataset",
        "digits",
        "--granularity",
        "layer",
        "--space",
        str(tmp_path / "space.yaml"),
        "--json",
    )
    assert code == 0
    found = json.loads(out)
    assert found["trial_flops"] == 3 * found["uncompressed"]["flops"] * 1078 * 5
    choices = {block["block"]: block["choices"] for block in found["blocks"]}
    assert choices["layer3.0.conv2"]["harmonics_y"] == choices["layer3.0.conv2"]["harmonics_x"] == [2]
    assert choices["layer3.0.conv2"]["pruning_rate"] == [None]
    assert all(block["bits"] == [8, 4] for block in choices.values())


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_inspect_draws_filters(capsys: pytest.CaptureFixture[str], tmp_path: Path, weights: Path, suffix: str) -> None:
    path = tmp_path / f"filters{suffix}"
    base = ["inspect", "--model", "resnet8", "--image", "1x8x8", "--weights", str(weights)]
    code, out, err = _said(capsys, *base, "--filters", "layer3.0.conv1", "--png", str(path))
    assert (code, out, err) == (0, f"{path}\n", "")
    assert path.read_bytes().startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")
    assert b"random start" not in path.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_inspect_says_the_errors_of_a_layers_filters(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, weights: Path
) -> None:
    path = tmp_path / "filters.png"
    base = ["inspect", "--model", "resnet8", "--image", "1x8x8", "--weights", str(weights)]
    code, out, _ = _said(capsys, *base, "--filters", "conv1", "--png", str(path), "--json")
    taps = load_file(weights)["conv1.weight"].double()
    share = (taps - taps.mean((2, 3), keepdim=True)).flatten(2).norm(dim=2) / taps.flatten(2).norm(dim=2)
    found = json.loads(out)
    assert (code, found["png"], found["layer"]) == (0, str(path), "conv1")
    assert found["errors"].keys() == {"cosine", "chebyshev"}
    for errors in found["errors"].values():
        assert list(errors) == ["3x2", "2x3", "2x2", "1x1"]
        assert errors["1x1"] == pytest.approx(float(share.mean()), rel=1e-9)
        assert errors["1x1"] > errors["2x2"] > max(errors["2x3"], errors["3x2"])


def test_inspect_draws_filters_rebuilt_from_templates(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, weights: Path
) -> None:
    path = tmp_path / "filters.png"
    base = ["inspect", "--model", "resnet8", "--image", "1x8x8", "--weights", str(weights), "--pruning-rate", "0.5"]
    code, out, _ = _said(capsys, *base, "--filters", "layer1.0.conv1", "--png", str(path), "--json")
    found = json.loads(out)
    assert (code, found["png"], found["layer"]) == (0, str(path), "layer1.0.conv1")
    assert list(found["errors"]) == ["scalar", "rotation", "affine", "zero"]
    assert found["errors"]["scalar"] < found["errors"]["zero"] == 1.0
    assert path.read_bytes().startswith(b"\x89PNG")
    code, _, err = _said(capsys, *base)
    assert (code, err) == (2, "overtone: pruning_rate (=0.5) goes with --png, and with --filters or without.\n")


def test_inspect_draws_the_rates_of_one_threshold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ("inspect", "--model", "resnet8", "--pruning-rate", "0.5", "--png")
    for dataset, kinds in ((), ["magnitude"]), (("--dataset", "digits"), ["magnitude", "gradient"]):
        path = tmp_path / f"{len(kinds)}.png"
        code, out, _ = _said(capsys, *base, str(path), *dataset, "--json")
        found = json.loads(out)
        assert (code, found["pruning_rate"], list(found["rates"])) == (0, 0.5, kinds)
        assert list(found["rates"]["magnitude"]) == ["conv1", "layer1", "layer2", "layer3"]
        assert path.read_bytes().startswith(b"\x89PNG")
    code, _, err = _said(capsys, *base, str(tmp_path / "rates.gif"))
    assert (code, err.endswith("rates.gif') must end in .png or .svg\n")) == (2, True)
    (tmp_path / "space.yaml").write_text("all: {pruning_rate: [none, global 0.5]}\n")
    asked = ("inspect", "--model", "resnet8", "--image", "1x8x8", "--space", str(tmp_path / "space.yaml"), "--json")
    code, out, _ = _said(capsys, *asked)
    rates = {block["block"]: block["choices"].get("pruning_rate") for block in json.loads(out)["blocks"]}
    assert (code, rates["layer3"][0], len(rates["layer3"])) == (0, None, 2)
    code, _, err = _said(capsys, *asked, "--saliency", "gradient")
    assert (code, err) == (2, "overtone: saliency (='gradient') needs labeled training images.\n")


def test_inspect_without_weights_says_that_filters_are_random(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "filters.svg"
    code, out, err = _said(capsys, "inspect", "--model", "resnet8", "--filters", "conv1", "--png", str(path))
    assert (code, out) == (0, f"{path}\n")
    assert err == "No weights were given: these are the filters of a random start.\n"
    first = path.read_text()
    assert "resnet8 conv1 (random start)" in first
    _said(capsys, "inspect", "--model", "resnet8", "--filters", "conv1", "--png", str(path))
    assert path.read_text() == first


def test_inspect_reads_weights_only_where_they_fit(capsys: pytest.CaptureFixture[str], weights: Path) -> None:
    base = ["inspect", "--model", "resnet8", "--weights", str(weights)]
    assert _said(capsys, *base, "--image", "1x8x8", "--json")[0] == 0
    code, _, err = _said(capsys, *base)
    assert code == 2
    assert "do not fit the model 'resnet8': 'conv1.weight' is (16, 1, 3, 3), not (16, 3, 3, 3)" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["bogus"], 2, "No such command 'bogus'"),
        (["inspect"], 2, "Missing option '--model'"),
        (["inspect", "--model", "resnet21"], 2, "model (='resnet21') must be one of resnet8"),
        (["inspect", "--model", "resnet8", "--image", "1x8"], 2, "image (='1x8') must be CHANNELSxHEIGHTxWIDTH"),
        (["inspect", "--model", "vgg16", "--image", "3x8x8"], 2, "cannot take 3x8x8 images"),
        (["inspect", "--model", "resnet8", "--dataset", "mnist"], 2, "dataset 'mnist' is unknown; allowed are"),
        (["inspect", "--model", "resnet8", "--space", "no.yaml"], 2, "space (='no.yaml') must be a readable YAML file"),
        (["inspect", "--model", "resnet8", "--device", "tpu"], 2, "device (='tpu') must be cpu, cuda or cuda:N"),
        (["inspect", "--model", "resnet8", "--recipe", "best"], 2, "schedule (='best') must be one of finetune,"),
        (["inspect", "--model", "resnet8", "--granularity", "row"], 2, "blocks (='row') must be stage or layer"),
        (
            ["inspect", "--model", "resnet8", "--filters", "conv1"],
            2,
            "filters (='conv1') and png (=None) must be given",
        ),
        (["inspect", "--model", "resnet8", "--png", "x.png"], 2, "filters (=None) and png (='x.png') must be given"),
        ([*DRAW, "conv1", "--png", "x.pdf"], 2, "path (='x.pdf') must end in .png or .svg"),
        ([*DRAW, "conv9", "--png", "x.png"], 2, "layer (='conv9') must be a convolution of more than one tap, such as"),
        ([*DRAW, "linear", "--png", "x.png"], 2, "layer (='linear') (a Linear) must be a convolution"),
        ([*DRAW, "conv1", "--png", "x.png", "--weights", "w"], 2, "weights (='w') must be a file or one of"),
        (["train", "--model", "resnet8", "--out", "x.pt"], 2, "out (='x.pt') must end in .safetensors"),
        ([*TRAIN, "--recipe", "best"], 2, "schedule (='best') must be one of finetune, approxconv,"),
        ([*TRAIN, "--set", "ema_decay"], 2, "setting ema_decay (='') must be a number"),
        ([*TRAIN, "--set", "lr=1"], 2, "setting (='lr=1') must be NAME=VALUE, with a name of momentum, nesterov,"),
        ([*TRAIN, "--set", "nesterov=1"], 2, "setting nesterov (='1') must be true or false"),
        ([*TRAIN, "--set", "milestones=a"], 2, "setting milestones (='a') must be numbers with commas"),
        ([*TRAIN, "--set", "ema_decay=1"], 2, "ema_decay (=1.0) must be at least 0 and below 1"),
        ([*TRAIN, "--config", "cos-9"], 2, "config (='cos-9') must be a readable JSON file or a preset of resnet8: "),
        (["status", "--study", "none"], 2, "study 'none' does not exist"),
        (["resume", "--study", "none"], 2, "study 'none' does not exist"),
        (["query", "--study", "a/b"], 2, "study name 'a/b' must be"),
        (["query", "--study", "none", "--sql", "SELECT 1", "--front"], 2, "sql (='SELECT 1') stands alone"),
        (["query", "--study", "none", "--sql", "SELECT 1", "--columns", "trial"], 2, "sql (='SELECT 1') stands alone"),
        (["confirm", "--study", "none"], 2, "study 'none' does not exist"),
        (["compact", "--study", "none"], 2, "study 'none' does not exist"),
        (["confirm", "--study", "none", "--seeds", "0"], 2, "seeds (=0) must be at least 1"),
        (["insight", "--study", "none"], 2, "study 'none' does not exist"),
        (["insight", "--study", "none", "--limit", "0"], 2, "limit (=0) must be at least 1"),
        (["report", "--study", "none", "--out", "x.html"], 2, "study 'none' does not exist"),
        (["export", "--study", "none", "--out", "x"], 2, "study 'none' does not exist"),
        (["export", "--study", "none", "--out", "x", "--rerun", "--device", "tpu"], 2, "device (='tpu') must be cpu"),
    ],
)
def test_wrong_use_is_one_sentence(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = _said(capsys, *arguments)
    assert (found, out) == (code, "")
    assert err.startswith("overtone: ")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-size", "tiny"], "max_size (='tiny') must be an amount above 0"),
        (["--max-size", "1kB"], "is met by no config of the space, whose least size is"),
        (["--objective", "val_top1", "--objective", "beauty"], "objective 'beauty' is unknown"),
        (["--init", "warm"], "init (='warm') must be one of calibrated, least_squares, gradient_descent"),
        (["--distillation", "2"], "distillation (=2.0) must be from 0 to 1"),
        (["--sampler", "luck"], "sampler (='luck') must be one of ehvi, tpe, nsga2, nsga3, gp, random"),
        (["--trials", "0"], "trials (=0) must be at least 1"),
        (["--keep", "best"], "keep (='best') must be front or all"),
        (["--model", "resnet20"], "do not fit the model 'resnet20'"),
        (["--weights", "missing.safetensors"], "weights (='missing.safetensors') must be a file"),
        (["--dataset", "parquet:/nowhere"], "/nowhere"),
        (["--space", "space.yaml"], "space names the block 'layer9'"),
    ],
)
def test_a_search_that_cannot_begin_says_why(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    weights: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text("layer9: {bits: [8]}\n")
    base = ["search", "--model", "resnet8", "--weights", str(weights), "--study", "s"]
    code, _, err = _said(capsys, *base, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not Path("runs").exists()


def test_a_key_that_comes_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("layer1:\n  bits: [4]\nlayer2:\n  bits: [4]\n  groups: [1]\n  bits: [8]\n")
    code, _, err = _said(capsys, "inspect", "--model", "resnet8", "--space", str(space))
    assert code == 2
    assert "must be a readable YAML file; found 'bits' twice" in err
    assert "line 4" in err
    space.write_text("layer1: &some\n  bits: [4]\nlayer2:\n  <<: *some\n  groups: [1]\n")
    assert _said(capsys, "inspect", "--model", "resnet8", "--space", str(space))[0] == 0


def test_a_network_of_the_working_directory_is_found_and_shadows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_own.py").write_text(
        "from torch import nn\n"
        "def build(classes, channels): return nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, classes))\n"
    )
    (tmp_path / "json.py").write_text("raise ImportError")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(sys, "argv", ["overtone", "inspect", "--model", "my_own:build", "--image", "1x8x8"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0, capsys.readouterr().err
    assert importlib.util.find_spec("json").origin != str(tmp_path / "json.py")


def test_ctrl_c_is_a_word_and_a_failure(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(store: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(studies, "OpenStore", stop)
    assert _said(capsys, "status", "--study", "s") == (1, "", "overtone: Interrupted.\n")


def test_inspect_train_and_export_need_neither_ray_nor_optuna(tmp_path: Path) -> None:
    out = tmp_path / "w.safetensors"
    inspected = _overtone("inspect", "--model", "resnet8", "--image", "1x8x8", block="ray optuna")
    trained = _overtone(
        "train",
        "--model",
        "resnet8",
        "--train-limit",
        "64",
        "--epochs",
        "1",
        "--out",
        str(out),
        "--json",
        block="ray optuna",
    )
    exported = _overtone(
        "export", "--study", "s", "--store", str(tmp_path), "--out", str(tmp_path / "x"), block="ray optuna"
    )
    assert inspected.returncode == 0, inspected.stderr
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["out"] == str(out)
    assert out.exists()
    assert (exported.returncode, exported.stdout) == (2, "")
    assert "study 's' does not exist" in exported.stderr


def test_a_compressed_network_is_trained_from_a_preset_and_from_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [*TRAIN, "--epochs", "2", "--recipe", "templates", "--set", "milestones=1", "--config"]
    code, out, err = _said(capsys, *asked, "cos-from-layer2")
    assert (code, out) == (0, out), err
    assert "after 2 epochs" in out
    assert "epoch 1/2: train_loss" in err
    assert "left" in err
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    card = read_card("x.safetensors")
    assert card["recipe"]["milestones"] == [1.0]
    (tmp_path / "config.json").write_text(json.dumps({"spec": {"config": card["config"]}}))
    first = (tmp_path / "x.safetensors").read_bytes()
    assert _said(capsys, *asked, "config.json")[0] == 0
    assert (tmp_path / "x.safetensors").read_bytes() == first
