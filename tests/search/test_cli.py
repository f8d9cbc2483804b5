import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from search.cli import _run, app


def _overtone(*arguments: str, block: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.modules.update(dict.fromkeys({block.split()})); from search.cli import main; main()"
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
    assert [block["block"] for block in found["blocks"]] == ["conv1", "layer1", "layer2", "layer3", "linear"]
    assert found["uncompressed"]["parameters"] == 269_722
    assert found["least"]["size_bytes"] < found["uncompressed"]["size_bytes"] / 50
    size = 1
    for block in found["blocks"]:
        for values in block["choices"].values():
            size *= len(values)
    assert size == found["space_size"]


def test_inspect_takes_data_space_and_single_layers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("all: {bits: [8, 4]}\nlayer3.0.conv2: {harmonics: [2], pruning_rate: none}\n")
    code, out, _ = _said(
        capsys,
        "inspect",
        "--model",
        "resnet8",
        "--dataset",
        "digits",
        "--blocks",
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
        (["inspect", "--model", "resnet8", "--blocks", "row"], 2, "blocks (='row') must be stage or layer"),
        (["train", "--model", "resnet8", "--out", "x.pt"], 2, "out (='x.pt') must end in .safetensors"),
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
        (["--sampler", "luck"], "sampler (='luck') must be one of tpe, nsga2, random"),
        (["--trials", "0"], "trials (=0) must be at least 1"),
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
