"""A search that is stopped or killed loses nothing that had ended, and goes on."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from results.ledger.ledger import Ledger
from results.ledger.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
TRIALS = 8


def _start(weights: Path, store: Path) -> subprocess.Popen[str]:
    arguments = ["search", "--model", "resnet8", "--weights", str(weights), "--study", "s", "--store", str(store)]
    arguments += ["--trials", str(TRIALS), "--train-limit", "400", "--gpus-per-trial", "0"]
    return subprocess.Popen(
        [sys.executable, "-m", "search", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _wait_for_rows(ledger: Ledger, process: subprocess.Popen[str], rows: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if ledger.studies() and ledger.trials("s").num_rows >= rows:
            return
        time.sleep(0.1)
    pytest.fail(f"The search ended with {process.poll()} before {rows} rows: {process.communicate()[1]}")


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_search_goes_on(weights: Path, tmp_path: Path, kind: signal.Signals) -> None:
    ledger = Ledger(Store(tmp_path))
    process = _start(weights, tmp_path)
    _wait_for_rows(ledger, process, 2)
    if kind == signal.SIGTERM:
        process.terminate()
    else:
        os.killpg(process.pid, kind)
    out, err = process.communicate(timeout=100)
    before = ledger.trials("s").to_pylist()
    assert 2 <= len(before) < TRIALS
    if kind != signal.SIGKILL:
        assert process.returncode == 1
        assert f"stopped at {len(before)} of {TRIALS} trials; continue with: overtone resume --study s" in out
        assert "Traceback" not in err
        assert ledger.read_progress("s")["state"] == "interrupted"

    again = _start(weights, tmp_path)
    out, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    after = ledger.trials("s").to_pylist()
    assert [row["number"] for row in after] == sorted({row["number"] for row in after})
    assert len({row["config_digest"] for row in after}) == len(after) == TRIALS
    kept = {row["trial"]: row for row in after}
    assert all(kept[row["trial"]] == row for row in before)


def _processes() -> dict[int, tuple[int, str]]:
    """The parent and the command line of every process that is not dead."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[int(folder.name)] = int(parent), command
    return found


def _below(pid: int) -> dict[int, str]:
    """Command lines of a process's children, and theirs."""
    every, found = _processes(), {pid: ""}
    while new := {p: command for p, (parent, command) in every.items() if parent in found and p not in found}:
        found |= new
    del found[pid]
    return found


def _open_trials(ledger: Ledger) -> dict[str, int]:
    """Numbers of the trials that are noted as begun and have no row."""
    ended = set(ledger.trials("s").column("trial").to_pylist())
    begun = ledger.read_progress("s")["unfinished"]
    return {s["trial"]: s["number"] for s in begun if s["trial"] not in ended}


def _hold_in_a_trial(ledger: Ledger, process: subprocess.Popen[str]) -> dict[str, int]:
    """Stop the driver for good while a trial is open, which it need not be in the moment between one and the next."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        os.kill(process.pid, signal.SIGSTOP)
        if found := _open_trials(ledger):
            return found
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.1)
    pytest.fail(f"No trial was open: {ledger.read_progress('s')}")


def test_a_search_whose_driver_is_killed_leaves_nobody_running_and_goes_on(weights: Path, tmp_path: Path) -> None:
    """The driver alone is killed: Ray ends by itself (its agents, which run nothing, a minute later), and what had
    begun is run under its number.
    """
    ledger = Ledger(Store(tmp_path))
    process = _start(weights, tmp_path)
    _wait_for_rows(ledger, process, 2)
    open_trials = _hold_in_a_trial(ledger, process)
    children = {pid: command for pid, command in _below(process.pid).items() if "Agent" not in command}
    assert any("raylet" in command for command in children.values())
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while (left := children.keys() & _processes().keys()) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert [children[pid] for pid in left] == []
    assert _open_trials(ledger) == open_trials

    again = _start(weights, tmp_path)
    _, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    rows = ledger.trials("s").to_pylist()
    assert [row["number"] for row in rows] == list(range(TRIALS))
    assert {row["trial"]: row["number"] for row in rows}.items() >= open_trials.items()
    assert {row["status"] for row in rows} <= {"finished", "pruned"}
    assert len({row["config_digest"] for row in rows}) == TRIALS


def test_a_worker_that_is_killed_costs_no_trial(weights: Path, tmp_path: Path) -> None:
    ledger = Ledger(Store(tmp_path))
    process = _start(weights, tmp_path)
    _wait_for_rows(ledger, process, 2)
    named = ("ray::TrialActor", "ray::ResourceTrainable")  # between steps, and in one
    workers = [pid for pid, command in _below(process.pid).items() if command.startswith(named)]
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "did not complete" not in err
    rows = ledger.trials("s").to_pylist()
    assert {row["status"] for row in rows} <= {"finished", "pruned"}
    assert [row["number"] for row in rows] == list(range(TRIALS))


def test_a_stopped_confirmation_goes_on(weights: Path, tmp_path: Path) -> None:
    ledger = Ledger(Store(tmp_path))
    common = ["--study", "s", "--store", str(tmp_path), "--gpus-per-trial", "0"]
    search = ["search", "--model", "resnet8", "--weights", str(weights), "--trials", "1", "--train-limit", "400"]
    assert (
        subprocess.run([sys.executable, "-m", "search", *search, *common], check=False, capture_output=True).returncode
        == 0
    )
    command = [sys.executable, "-m", "search", "confirm", "--seeds", "8", *common]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen(command, **pipes)  # type: ignore[call-overload]
    deadline = time.monotonic() + 120
    while ledger.repeats("s").num_rows < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=100)
    before = ledger.repeats("s").to_pylist()
    assert 2 <= len(before) < 8
    assert (process.returncode, "Traceback" in err) == (1, False)
    assert f"{len(before)} of 8 repeats of 1 trial of s done; the same command continues" in out

    again = subprocess.run(command, check=False, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"{8 - len(before)} of 8 repeats to run" in again.stderr
    after = {row["trial"]: row for row in ledger.repeats("s").to_pylist()}
    assert sorted(row["seed"] for row in after.values()) == list(range(1, 9))
    assert all(after[row["trial"]] == row for row in before)
