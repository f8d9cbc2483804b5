"""Every example of docs/queries.md runs and finds something, against a small ledger; its tables are the real ones."""

import re
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from results.ledger.ledger import Ledger
from results.ledger.store import Store
from results.queries.query import query, sql
from results.queries.tables import TABLES
from results.schema import TrialRow, TrialStatus
from search.commands.cli import run

PAGE = (Path(__file__).parents[3] / "docs" / "queries.md").read_text()
METRICS = {"val_top1": 0.9, "val_top5": 0.99, "val_loss": 0.4}
BASELINE = {
    "score": 0.9,
    "metrics": METRICS,
    "val_images": 360,
    "size_bytes": 312_000,
    "flops": 9_000_000,
    "macs": 4_500_000,
}
KNOBS = ("basis", "harmonics_y", "harmonics_x", "pruning_rate", "groups", "transform", "bits", "exponent_block")


def _fenced(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def _row(number: int, rng: np.random.Generator, **changes: Any) -> TrialRow:
    begun = datetime.now(UTC) + timedelta(seconds=number)
    blocks = []
    for name in ("conv1", "layer3"):
        series = {"basis": "cosine", "harmonics_y": int(rng.integers(1, 3)), "harmonics_x": 2} if number % 3 else {}
        bits = {"bits": 4 + 2 * int(rng.integers(3)), "exponent_block": 16}
        blocks.append({"block": name, **dict.fromkeys(KNOBS), **series, **bits})
    top1 = np.sort(rng.uniform(0.85, 0.95, 3))
    measured = [{"score": float(v), "metrics": {**METRICS, "val_top1": float(v)}} for v in top1]
    history = [
        {"epoch": i + 1, "train_loss": 1.0 / (i + 1), **measured[i], "lr": 0.01, "seconds": 1.0} for i in range(3)
    ]
    values: dict[str, Any] = {
        **dict.fromkeys(("model", "dataset", "init", "config_digest", "spec_digest"), "x"),
        "study": "demo",
        "trial": f"{number:010x}",
        "number": number,
        "status": TrialStatus.FINISHED,
        "spec": "{}",
        "seed": 0,
        "epochs": 3,
        "epochs_run": 3,
        "started_at": begun,
        "finished_at": begun,
        **measured[-1],
        "score_name": "val_top1",
        "init_score": 0.2,
        "parameters": 10,
        "macs": 10,
        "blocks": blocks,
        "history": history,
        "size_bytes": int(rng.integers(10_000, 90_000)),
        "flops": int(rng.integers(500_000, 4_000_000)),
    }
    return TrialRow(**{**values, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, session_seed: int) -> Path:
    """A folder whose store `runs` has the study `demo`: 29 trials, one failed, and repeats of one."""
    rng, folder = np.random.default_rng(session_seed), tmp_path_factory.mktemp("queries")
    ledger = Ledger(Store(folder / "runs"))
    record = {"score_name": "val_top1", "objectives": ["val_top1", "size_bytes", "flops"], "uncompressed": BASELINE}
    ledger.create_study("demo", record)
    for number in range(29):
        ledger.append(_row(number, rng))
    ledger.append(_row(29, rng, status=TrialStatus.FAILED, error="out of memory", score=None, metrics={}, history=()))
    best = ledger.front("demo").column("trial").to_pylist()[-1]
    for seed in (1, 2):
        ledger.append(_row(0, rng, trial=f"repeat{seed}", repeat_of=best, seed=seed))
    return folder


def test_the_page_has_examples_of_each_kind() -> None:
    assert len(_fenced("bash")) >= 6
    assert len(_fenced("sql")) >= 6
    assert len(_fenced("python")) >= 4


@pytest.mark.parametrize("line", [line for block in _fenced("bash") for line in block.splitlines()])
def test_commands_run(
    folder: Path, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    program, *arguments = shlex.split(line)
    assert program == "overtone"
    assert run(arguments) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "demo: 0 trials" not in out
    assert len(out.splitlines()) > 1


@pytest.mark.parametrize("statement", _fenced("sql"))
def test_sql_finds_rows(folder: Path, statement: str) -> None:
    assert len(sql(Ledger(Store(folder / "runs")), "demo", statement)) > 0


@pytest.mark.parametrize("code", _fenced("python"))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_python_runs(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/queries.md", "exec"), names)
    frames = {name: value for name, value in names.items() if isinstance(value, pd.DataFrame)}
    assert frames
    assert all(len(frame) for frame in frames.values())
    if "searched" in frames:
        assert len(frames["searched"]) == 29
        assert len(frames["trials"]) == 32


def test_answers_are_those_of_a_plain_loop(folder: Path) -> None:
    """The first three questions of the page."""
    ledger = Ledger(Store(folder / "runs"))
    rows = [row for row in ledger.trials("demo").to_pylist() if row["status"] == "finished"]
    where = "val_top1 >= (select val_top1 from baseline) - 0.01"
    near = [row for row in rows if row["score"] >= METRICS["val_top1"] - 0.01]
    found = query(ledger, "demo", where=where, sort="size_bytes", limit=1)
    assert found["size_bytes"].tolist() == [min(row["size_bytes"] for row in near)]
    small = [row for row in rows if row["size_bytes"] <= 100e3 and row["flops"] <= 5e6]
    found = query(ledger, "demo", where="size_bytes <= 100e3 and flops <= 5e6", sort="val_top1", limit=1)
    assert found["val_top1"].tolist() == found["score"].tolist() == [max(row["score"] for row in small)]
    found = sql(ledger, "demo", next(s for s in _fenced("sql") if "layer3" in s))
    layer3 = [(row, next(b for b in row["blocks"] if b["block"] == "layer3")) for row in rows]
    for _, group in found.iterrows():
        y = None if pd.isna(group["harmonics_y"]) else group["harmonics_y"]
        same = [row for row, block in layer3 if block["harmonics_y"] == y]
        assert group["trials"] == len(same)
        assert group["mflops"] == pytest.approx(np.mean([row["flops"] for row in same]) / 1e6)


def test_the_tables_are_described_as_they_are(folder: Path) -> None:
    ledger = Ledger(Store(folder / "runs"))
    described = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, flags=re.MULTILINE))
    assert set(described) == set(TABLES)
    for name, text in described.items():
        columns = TABLES[name](ledger, "demo").column_names
        told = set(re.findall(r"`(\w+)`", text)) - set(TABLES)
        assert told <= set(columns)
        if name in ("epochs", "blocks", "baseline"):
            assert told == set(columns)
