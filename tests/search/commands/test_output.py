"""Commands on terminals of any encoding and width, and where nothing can be written."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from results.ledger.ledger import Ledger
from results.schema import TrialRow
from search.api.study import Study
from search.commands.cli import run
from search.commands.output import encodable
from search.runner.confirm import RepeatResult
from search.runner.progress import Progress, RunProgress
from search.study.plan import StudyPlan

COMMANDS = [
    ("status",),
    ("status", "--json"),
    ("query",),
    ("query", "--format", "json"),
    ("query", "--format", "csv"),
    ("query", "--sql", "SELECT '±é日' AS \"ü\", error FROM trials"),
    ("importance",),
    ("confirm",),
    ("export", "--out", "Änderung"),
    ("inspect", "--model", "resnet8"),
]


@pytest.fixture
def options(
    ledger: Ledger,
    plan: StudyPlan,
    run_alone: Callable[[StudyPlan], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[tuple[str, ...]], list[str]]:
    """Completes a command with a study of one trial, whose score is known over three seeds; Ray is not begun."""
    study = run_alone(plan)
    row = ledger.trials(study).to_pylist()[0]
    for seed, score in ((1, 0.5), (2, 0.7)):
        again = {"trial": f"again{seed}", "seed": seed, "repeat_of": row["trial"], "score": score}
        ledger.append(TrialRow.from_record({**row, **again}))
    repeated = RepeatResult(trials=(row["trial"],), wanted=2, done=2, failed=0)
    monkeypatch.setattr(Study, "confirm", lambda *_, **__: repeated)
    monkeypatch.chdir(tmp_path)

    def complete(command: tuple[str, ...]) -> list[str]:
        return [*command, *(() if command[0] == "inspect" else ("--study", study, "--store", str(tmp_path / "runs")))]

    return complete


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command, which must succeed, on a terminal of this encoding and returns what stands there."""

    def run_there(command: list[str], encoding: str, columns: int = 140) -> str:
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setenv("COLUMNS", str(columns))
            assert run(command) == 0
        assert isinstance(out.buffer, io.BytesIO)
        return out.buffer.getvalue().decode("utf-8" if "--format" in command else encoding)

    return run_there


def test_every_command_prints_in_ascii_where_there_is_nothing_else(
    options: Callable[[tuple[str, ...]], list[str]], printed: Callable[..., str]
) -> None:
    shown = {command: printed(options(command), "ascii") for command in COMMANDS}
    assert "+-" in shown[("confirm",)]
    assert "|" in shown[("query",)]
    assert "\\xc4nderung: trial abc" in shown[("export", "--out", "Änderung")]
    assert r"+-\xe9\u65e5" in shown[COMMANDS[5]]
    lines = shown[COMMANDS[5]].splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "±" in printed(options(("confirm",)), "latin-1")
    assert "±" in printed(options(("confirm",)), "utf-8")


def test_tables_are_readable_at_40_columns(
    options: Callable[[tuple[str, ...]], list[str]], printed: Callable[..., str]
) -> None:
    """What does not fit side by side stands one below the other, and no word is cut."""
    for command in (("query",), ("query", "--front"), ("confirm",), ("inspect", "--model", "resnet8")):
        lines = printed(options(command), "utf-8", 40).splitlines()
        assert max(map(len, lines)) <= 40 or command == ("confirm",)  # its last line is a sentence
    shown = printed(options(("query",)), "utf-8", 40)
    assert {"trial", "val_top1", "size", "network"} <= {line.partition(" ")[0] for line in shown.splitlines()}
    assert "layer3: cosine 2x2, 6 bits in blocks of 16" in " ".join(shown.split())
    narrow = printed(options(("query", "--columns", "trial,size_bytes")), "utf-8", 40)
    assert "│ abc" in narrow
    long = printed(options(("query", "--sql", "SELECT trial, spec, number FROM trials")), "utf-8", 40)
    assert max(map(len, long.splitlines())) <= 40
    assert "number 0" in long


def test_a_bar_is_drawn_in_ascii() -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    with Progress(Console(file=out, force_terminal=True, width=80)) as progress:
        progress.show(RunProgress(wanted=3, done=1, failed=0, pruned=0, running=1, seconds_left=60.0), None)
    out.flush()
    assert isinstance(out.buffer, io.BytesIO)
    assert b"1/3" in out.buffer.getvalue()


def test_texts_keep_what_an_encoding_has() -> None:
    assert encodable("97 % ±0.5 · é 日 \udcff", "ascii") == r"97 % +-0.5 - \xe9 \u65e5 \udcff"
    assert encodable("±é日", "latin-1") == "±é\\u65e5"
    assert encodable("±é日", "utf-8") == "±é日"


def _overtone(arguments: list[str], out: int | None, **environment: str) -> tuple[int, str]:
    command = [sys.executable, "-c", "from search.commands.cli import main; main()", *arguments]
    given = {"PYTHONPATH": os.pathsep.join(sys.path), "HOME": os.environ.get("HOME", "/"), **environment}
    ended = subprocess.run(
        command, stdout=subprocess.PIPE if out is None else out, stderr=subprocess.PIPE, env=given, timeout=60
    )
    return ended.returncode, ended.stderr.decode()


@pytest.mark.parametrize("command", [("status",), ("query", "--format", "csv"), ("status", "--json")])
def test_a_full_disk_is_one_sentence(options: Callable[[tuple[str, ...]], list[str]], command: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        ended = _overtone(options(command), full.fileno())
    assert ended == (1, "overtone: cannot write the answer: No space left on device\n")


def test_a_closed_pipe_ends_without_a_word(options: Callable[[tuple[str, ...]], list[str]]) -> None:
    read, write = os.pipe()
    os.close(read)
    code, err = _overtone(options(("query", "--format", "json")), write)
    os.close(write)
    assert (code, err) == (1, "")


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_a_terminal_without_unicode_shows_the_front(
    options: Callable[[tuple[str, ...]], list[str]], environment: dict[str, str]
) -> None:
    assert _overtone(options(("query", "--front")), None, **environment) == (0, "")
