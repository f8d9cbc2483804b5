"""Every block of README.md and docs/*.md runs, or is understood as far as it goes without Ray and large data."""

import argparse
import ast
import contextlib
import io
import itertools
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import typer
import yaml

import overtone as ot
from results.ledger.ledger import Ledger
from results.ledger.store import Store
from results.queries.query import sql
from search.commands.cli import app, run
from search.study.plan import StudyPlan
from spaces import Network, Space, build_model, load_weights, save_weights
from spaces.global_pruning import resolve_global_rates
from tests.docs.calls import called, check_calls, names_used
from tests.docs.pages import ROOT, Block, blocks, command_lines
from trainers.__main__ import main as run_trainers
from trainers.data import load_data
from trainers.start.saliency import filter_saliency
from trainers.training.recipe import RECIPES

LANGUAGES = {"bash", "python", "sql", "text", "yaml"}
TRAINING = {"confirm", "resume", "search", "sketch", "train"}
"""Commands that are not run here, only parsed."""
ELSEWHERE = re.compile(r"cifar10|imagefolder:|s3://|onnx")
"""Data and stores that are not there, and what takes too long here."""
WORKING = {"confirm", "create_study", "export", "optimize", "sketch"}
"""Functions of the Python interface that train, or take long, for which a block is not run here."""
LINES = sorted({tuple(words) for block in blocks("bash") for words in command_lines(block.text)})
OVERTONE = [words[1:] for words in LINES if words[0] == "overtone"]
PARSED = [words for words in OVERTONE if words[0] in TRAINING or ELSEWHERE.search(" ".join(words))]
RUN = [words for words in OVERTONE if words not in PARSED]
PROGRAMS = {
    "make": [words[1:] for words in LINES if words[0] == "make"],
    "pip": [words[1:] for words in LINES if words[0] == "pip"],
    "trainers": [words[3:] for words in LINES if words[:3] == ("python", "-m", "trainers")],
}
FRONT_DOOR = [block for block in blocks("python") if names_used(block.text) & {"ot", "study", "trial"}]
BEHIND = [block for block in blocks("python") if block not in FRONT_DOOR and "model.pt2" not in block.text]
"""All others but the one that tests/spaces/portable/test_program.py runs in a process without Overtone."""


def each(cases: list[Any], name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        name, cases, ids=lambda case: str(case) if isinstance(case, Block) else " ".join(case)
    )


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    assert {block.language for block in blocks()} == LANGUAGES
    programs = {words[0] for words in LINES}
    assert len(OVERTONE) + sum(map(len, PROGRAMS.values())) == len(LINES), programs
    assert len(RUN) >= 12
    assert len(PARSED) >= 8


@each(PARSED, "words")
def test_options_of_what_would_train_are_understood(words: tuple[str, ...]) -> None:
    group = typer.main.get_group(app)
    with group.make_context("overtone", list(words)) as context:
        name, command, rest = group.resolve_command(context, list(words))
        while hasattr(command, "resolve_command"):
            context = command.make_context(name, list(rest), parent=context)
            name, command, rest = command.resolve_command(context, list(rest))
        params = command.make_context(name, rest, parent=context).params
    assert params.get("recipe", "finetune") in RECIPES


@each(RUN, "words")
def test_commands_run(
    words: tuple[str, ...],
    folder: Path,
    kept: Path,
    work_in: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    work_in(kept if words[0] == "export" else folder)
    if "resnet20.safetensors" in words:
        save_weights(build_model("resnet20", classes=10, channels=3), Path("resnet20.safetensors"), {})
    assert run(list(words)) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert out
    assert "demo: 0 trials" not in out
    if words[0] == "query":
        assert len(out.splitlines()) > 1
    if "--out" in words:
        assert Path(words[words.index("--out") + 1]).exists()


@each(PROGRAMS["make"], "words")
def test_make_has_the_target(words: tuple[str, ...]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(words) <= set(targets)


@each(PROGRAMS["pip"], "words")
def test_pip_installs_the_checkout_or_a_dependency(words: tuple[str, ...]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(itertools.chain(project["dependencies"], *project["optional-dependencies"].values()))
    ours = [".", *(f".[{extra}]" for extra in project["optional-dependencies"])]
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("command", choices=["install", "wheel"])
    parser.add_argument("packages", nargs="+", choices=[*ours, *(re.split(r"[>\[]", name)[0] for name in wanted)])
    parser.add_argument("--no-deps", action="store_true")
    parser.add_argument("--wheel-dir")
    parser.parse_args(words)


@each(PROGRAMS["trainers"], "words")
def test_a_trial_runs_by_itself(
    words: tuple[str, ...],
    kept: Path,
    work_in: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work_in(kept)
    monkeypatch.setattr(sys, "argv", ["trainers", *words])
    monkeypatch.setattr("trainers.__main__.warnings.showwarning", None)
    assert run_trainers() == 0
    assert '"score"' in capsys.readouterr().out


@each(blocks("text"), "block")
def test_a_text_is_of_the_output_of_the_command_before_it(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is a block of its own, of one line."""
    monkeypatch.delenv("COLUMNS", raising=False)
    before = [other for other in blocks() if other.page == block.page and other.line < block.line][-1]
    assert before.language == "bash"
    ((program, *arguments),) = command_lines(before.text)
    assert program == "overtone"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert run(arguments) == 0
    lines = [re.sub("┃", "│", line.strip()) for line in out.getvalue().splitlines()]
    assert set(block.text.splitlines()) <= set(lines)


@each(blocks("yaml"), "block")
def test_a_space_is_one_of_a_resnet20(block: Block) -> None:
    module = build_model("resnet20", classes=10, channels=3)
    network, minimum = Network.from_module(module, (3, 32, 32)), StudyPlan.minimum_templates
    saliency = filter_saliency(StudyPlan.saliency, module, None, seed=0)
    limits = resolve_global_rates(yaml.safe_load(block.text), network, saliency, minimum)
    assert Space.default(network, minimum).restrict(limits).knobs != Space.default(network, minimum).knobs


@each(blocks("sql"), "block")
def test_sql_finds_rows(folder: Path, block: Block) -> None:
    assert len(sql(Ledger(Store(folder / "runs")), "demo", block.text)) > 0


@pytest.fixture
def prepared(plan: StudyPlan) -> dict[str, Any]:
    """What the pages call a network, its images and their labels."""
    net = build_model("resnet8", classes=10, channels=1)
    load_weights(net, plan.weights, name="resnet8")
    val = load_data(plan.data).val
    return {"net": net.eval(), "images": val.images[:64].float() / 255, "labels": val.labels[:64]}


@each(BEHIND, "block")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_python_runs(
    block: Block, folder: Path, kept: Path, work_in: Callable[[Path], None], prepared: dict[str, Any]
) -> None:
    names = _execute(block, folder, kept, work_in, prepared)
    if "searched" in names:
        assert len(names["searched"]) == 29
        assert len(names["trials"]) == 35
    if "make" in names:
        network = Network.from_module(names["make"](classes=10, channels=3), (3, 32, 32))
        assert len(Space.default(network).restrict({"all": {"harmonics": [1, 2]}}).knobs) > 4


@each(FRONT_DOOR, "block")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_python_interface_is_used_as_it_is(
    block: Block, folder: Path, kept: Path, work_in: Callable[[Path], None], prepared: dict[str, Any]
) -> None:
    """Calls fit the signatures; what trains nothing runs."""
    assert check_calls(block.text, {"study": ot.Study, "trial": ot.Trial})
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Assign) and "_study(" in ast.unparse(node.value):
            assert ast.unparse(node.targets[0]) == "study", "by this name the next blocks know it"
    if not called(block.text) & WORKING:
        _execute(block, folder, kept, work_in, prepared)


def _execute(
    block: Block, folder: Path, kept: Path, work_in: Callable[[Path], None], prepared: dict[str, Any]
) -> dict[str, Any]:
    """Return the names after running the block in a folder that has what it asks for."""
    needs_model = {"bench", "load", "load_model"} & called(block.text)
    work_in(kept if needs_model else folder)
    if needs_model:
        Path("model").mkdir()
        Path("model.safetensors").rename("model/model.safetensors")
    names = dict(prepared)
    exec(compile(block.text, str(block), "exec"), names)
    frames = {name: value for name, value in names.items() if isinstance(value, pd.DataFrame)}
    assert all(len(frame) for name, frame in frames.items() if name != "knobs"), "of random scores none may matter"
    logits = names.get("logits", torch.zeros(64, 10))
    assert tuple(logits.shape) == (64, 10)
    return names
