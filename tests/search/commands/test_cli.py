import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from results.ledger.ledger import Ledger
from search.api import create
from search.commands import options
from search.commands.cli import app, main
from search.study.plan import StudyPlan

Overtone = Callable[..., tuple[int, str, str]]
TRAIN = ("train", "--model", "resnet8", "--train-limit", "64", "--out", "x.safetensors")
SEARCH = ("search", "--model", "resnet8", "--weights", "none.safetensors", "--dataset", "digits")
DRAW = ("plot", "filters", "--model", "resnet8", "--layer")


def test_help_teaches_with_an_example_within_80_columns(command_names: list[str]) -> None:
    for command in command_names:
        shown = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "80"})
        assert shown.exit_code == 0
        assert f"Example: overtone {command} " in " ".join(shown.output.split())
        assert max(map(len, shown.output.splitlines())) <= 80


def test_help_shows_options_by_panel() -> None:
    lines = CliRunner().invoke(app, ["search", "--help"], env={"COLUMNS": "80"}).output.splitlines()
    titles = [line.removesuffix(":") for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert titles == [title for title in (*options.PANELS, "Options") if title != options.TRIALS]
    at = {title: lines.index(f"{title}:") for title in titles}
    for name, title in ("--dataset", options.NETWORK), ("--miss-rate", options.SEARCH), ("--address", options.CLUSTER):
        line = next(n for n, line in enumerate(lines) if n > min(at.values()) and line.startswith(f"  {name} "))
        assert max((at[title], title) for title in titles if at[title] < line)[1] == title


def test_every_option_has_a_panel_and_a_help_text() -> None:
    group = typer.main.get_group(app)
    commands = [*group.commands.items(), *group.commands["plot"].commands.items()]
    for name, command in commands:
        for parameter in command.params:
            if name != "plot" and parameter.name != "help":
                assert parameter.rich_help_panel in options.PANELS, (name, parameter.name)
                assert parameter.help.endswith("."), (name, parameter.name)


def test_search_resume_and_confirm_take_the_same_resources() -> None:
    commands = typer.main.get_group(app).commands
    for name in ("gpus_per_trial", "cpus_per_trial", "concurrency", "address"):
        declared = [
            next((p.default, p.help) for p in commands[command].params if p.name == name)
            for command in ("search", "resume", "confirm")
        ]
        assert declared == 3 * declared[:1]


def test_the_version_is_that_of_the_installation(overtone: Overtone) -> None:
    assert overtone("--version") == (0, f"overtone {importlib.metadata.version('overtone')}\n", "")


@pytest.mark.parametrize("command", [(), ("plot",)])
def test_without_a_command_the_commands_are_shown(overtone: Overtone, command: tuple[str, ...]) -> None:
    code, out, err = overtone(*command)
    assert (code, err) == (2, "")
    assert "Commands:" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["bogus"], 2, "No such command 'bogus'"),
        (["insight"], 2, "No such command 'insight'"),
        (["inspect"], 2, "Missing option '--model'"),
        (["inspect", "--model", "resnet8", "--png", "x.png"], 2, "No such option: --png"),
        (["inspect", "--model", "resnet21"], 2, "model (='resnet21') must be one of resnet8"),
        (["inspect", "--model", "resnet8", "--image-size", "0"], 2, "Invalid value for '--image-size'"),
        (["inspect", "--model", "vgg16", "--image-size", "8"], 2, "cannot take 3x8x8 images"),
        (["inspect", "--model", "resnet8", "--dataset", "mnist"], 2, "(='mnist') must be"),
        (["inspect", "--model", "resnet8", "--space", "no.yaml"], 2, "space (='no.yaml') must be a readable YAML file"),
        (["inspect", "--model", "resnet8", "--device", "tpu"], 2, "device (='tpu') must be cpu, cuda or cuda:N"),
        (["inspect", "--model", "resnet8", "--recipe", "best"], 2, "recipe (='best') must be one of finetune,"),
        (["inspect", "--model", "resnet8", "--granularity", "row"], 2, "granularity (='row') must be stage or layer"),
        (["inspect", "--model", "resnet8", "--saliency", "x"], 2, "saliency (='x') must be one of magnitude, gradient"),
        ([*DRAW, "conv1", "--out", "x.pdf"], 2, "(='x.pdf') must end in .png or .svg"),
        ([*DRAW, "conv9", "--out", "x.png"], 2, "layer (='conv9') must be a convolution of more than one tap, such as"),
        ([*DRAW, "linear", "--out", "x.png"], 2, "layer (='linear') (a Linear) must be a convolution"),
        ([*DRAW, "conv1", "--out", "x.png", "--weights", "w"], 2, "weights (='w') must be a file or one of"),
        (["plot", "front", "--study", "none", "--out", "x.png"], 2, "study 'none' does not exist"),
        (["plot", "rates", "--model", "resnet8", "--out", "x.png"], 2, "Missing option '--pruning-rate'"),
        (["train", "--model", "resnet8", "--out", "x.pt"], 2, "out (='x.pt') must end in .safetensors"),
        ([*TRAIN, "--recipe", "best"], 2, "recipe (='best') must be one of finetune, approxconv,"),
        ([*TRAIN, "--set", "ema_decay"], 2, "ema_decay (='') must be a number"),
        ([*TRAIN, "--set", "lr=1"], 2, "set (='lr=1') must be NAME=VALUE, with a name of momentum, nesterov,"),
        ([*TRAIN, "--set", "nesterov=1"], 2, "nesterov (='1') must be true or false"),
        ([*TRAIN, "--set", "milestones=a"], 2, "milestones (='a') must be numbers with commas"),
        ([*TRAIN, "--set", "ema_decay=1"], 2, "ema_decay (=1.0) must be at least 0 and below 1"),
        ([*TRAIN, "--config", "cos-9"], 2, "config (='cos-9') must be a readable JSON file or a preset of resnet8: "),
        (["status", "--study", "none"], 2, "study 'none' does not exist"),
        (["resume", "--study", "none"], 2, "study 'none' does not exist"),
        (["resume", "--study", "none", "--trials", "3"], 2, "No such option: --trials"),
        (["query", "--study", "a/b"], 2, "'a/b'"),
        (["query", "--study", "none", "--sql", "SELECT 1", "--front"], 2, "sql (='SELECT 1') must stand alone"),
        (["query", "--study", "none", "--sql", "SELECT 1", "--columns", "trial"], 2, "sql (='SELECT 1') must stand"),
        (
            ["query", "--study", "none", "--sql", "FROM trials", "--ascending"],
            2,
            "sql (='FROM trials') must stand alone",
        ),
        (["query", "--study", "none", "--store", "file://runs"], 2, "store (='file://runs') must be file:/// and a"),
        ([*SEARCH, "--study", "007"], 2, "study name (='007') must not be what readers take for a number"),
        ([*SEARCH, "--study", "aux"], 2, "study name (='aux') must be a file's on every system"),
        (["confirm", "--study", "none"], 2, "study 'none' does not exist"),
        (["compact", "--study", "none"], 2, "study 'none' does not exist"),
        (["importance", "--study", "none"], 2, "study 'none' does not exist"),
        (["importance", "--study", "none", "--limit", "0"], 2, "limit (=0) must be at least 1"),
        (["report", "--study", "none", "--out", "x.html"], 2, "study 'none' does not exist"),
        (["export", "--study", "none", "--out", "x"], 2, "study 'none' does not exist"),
    ],
)
def test_wrong_use_is_one_sentence(
    overtone: Overtone,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = overtone(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("overtone: ")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


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
    argv = ["overtone", "inspect", "--model", "my_own:build", "--image-size", "8", "--channels", "1"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0, capsys.readouterr().err
    assert importlib.util.find_spec("json").origin != str(tmp_path / "json.py")


def test_ctrl_c_is_a_word_and_a_failure(overtone: Overtone, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*given: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(create, "load_study", stop)
    assert overtone("status", "--study", "s") == (1, "", "overtone: interrupted\n")


@pytest.mark.timeout(300)
def test_commands_that_do_not_search_need_neither_ray_nor_optuna(
    ledger: Ledger, plan: StudyPlan, run_alone: Callable[[StudyPlan], str], weights: Path, tmp_path: Path
) -> None:
    study = ("--study", run_alone(plan), "--store", str(tmp_path / "runs"))
    network = ("--model", "resnet8", "--weights", str(weights), "--dataset", "digits")
    commands = [
        ("inspect", *network),
        ("train", *TRAIN[1:-1], str(tmp_path / "w.safetensors"), "--epochs", "1"),
        *(("status", *study), ("query", *study), ("query", *study, "--front"), ("compact", *study)),
        *(("importance", *study), ("report", *study, "--out", str(tmp_path / "report.html"))),
        ("export", *study, "--pick", "abc", "--out", str(tmp_path / "exported")),
        ("bench", str(tmp_path / "exported" / "model.safetensors"), "--batch", "1"),
        ("plot", "front", *study, "--out", str(tmp_path / "front.png")),
        ("plot", "filters", *network, "--layer", "conv1", "--out", str(tmp_path / "filters.png")),
        ("plot", "rates", *network, "--pruning-rate", "0.5", "--out", str(tmp_path / "rates.png")),
    ]
    code = (
        "import json, sys\n"
        "sys.modules.update(dict.fromkeys(['ray', 'optuna']))\n"
        "from search.commands.cli import run\n"
        "sys.exit(max(run(argv) for argv in json.loads(sys.argv[1])))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "val_top1" in done.stdout
    names = ("w.safetensors", "report.html", "exported/config.json", "front.png", "filters.png", "rates.png")
    assert all((tmp_path / name).exists() for name in names)
