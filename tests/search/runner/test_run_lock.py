"""Who may run a study: of several processes exactly one, and nobody is kept out by one that is gone."""

import json
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from layers import OvertoneError, UsageError
from results.ledger.ledger import Ledger
from results.ledger.store import Store
from search.runner import run_lock
from search.runner.run_lock import PATIENCE, hold, is_running
from search.study.study_ledger import StudyLedger

QUIET = Console(quiet=True)
ELSEWHERE = {"host": "another", "boot": "b", "namespace": "n", "pid": 1, "started": "1"}


@pytest.fixture
def study(tmp_path: Path) -> StudyLedger:
    return StudyLedger(Ledger(Store(tmp_path / "runs")), "s")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds that a newcomer watches a claim of another machine."""
    monkeypatch.setattr(run_lock, "HEARTBEAT_S", 0.1)
    return PATIENCE * 0.1


def _claims(study: StudyLedger) -> list[str]:
    return study.ledger.store.list("claims")


def _leave_claim(study: StudyLedger, who: dict[str, Any], token: str = "0" * 32) -> str:
    """Write what a process leaves that holds the study and dies."""
    for kind, value in (("claim", who), ("beat", {"beats": 7})):
        study.ledger.store.write_bytes(f"claims/s.{token}.{kind}", json.dumps(value).encode())
    return token


def _contend(study: StudyLedger, start: Any, done: Any, outcomes: Any) -> None:
    start.wait()
    try:
        with hold(study, QUIET):
            outcomes.put("runs")
            done.wait()
    except UsageError as error:
        outcomes.put(str(error))


@pytest.mark.parametrize("machines", [1, 8], ids=["of one machine", "of eight machines"])
def test_of_eight_processes_that_start_together_exactly_one_goes_on(
    study: StudyLedger, machines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "HEARTBEAT_S", 3.0 if machines > 1 else 5.0)
    if machines > 1:
        monkeypatch.setattr(run_lock, "_this_machine", lambda: {"host": str(os.getpid()), "boot": "", "namespace": ""})
    context = multiprocessing.get_context("fork")
    start, done, outcomes = context.Event(), context.Event(), context.Queue()
    processes = [context.Process(target=_contend, args=(study, start, done, outcomes)) for _ in range(8)]
    for process in processes:
        process.start()
    start.set()
    said = [outcomes.get(timeout=60) for _ in processes]
    done.set()
    for process in processes:
        process.join()
    assert said.count("runs") == 1
    assert all("study 's' is run by process" in text for text in said if text != "runs")
    assert _claims(study) == []


@pytest.mark.parametrize("_round", range(8))
def test_exactly_one_goes_on_however_the_steps_of_several_interleave(
    study: StudyLedger, rng: random.Random, _round: int
) -> None:
    """Six threads; each read and write waits a random while first."""
    store: Any = study.ledger.store
    wins: list[int] = []
    refusals: list[int] = []
    barrier, done = threading.Barrier(6), threading.Event()

    def contend() -> None:
        barrier.wait()
        try:
            with hold(study, QUIET):
                wins.append(1)
                done.wait(20)
        except UsageError:
            refusals.append(1)

    for name in ("read_bytes", "write_bytes", "delete", "list"):
        setattr(store, name, _slowed(getattr(store, name), rng))
    threads = [threading.Thread(target=contend) for _ in range(6)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(wins) + len(refusals) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join()
    assert (len(wins), len(refusals)) == (1, 5)


def _slowed(call: Callable[..., Any], rng: random.Random) -> Callable[..., Any]:
    def slow(*args: Any, **more: Any) -> Any:
        time.sleep(rng.choice((0, 0.002, 0.02)) * rng.random())
        return call(*args, **more)

    return slow


def test_a_study_is_free_again_after_any_end(study: StudyLedger) -> None:
    def stop(error: type[BaseException]) -> None:
        assert _claims(study)
        raise error("stop")

    for error in (KeyboardInterrupt, OvertoneError):
        with pytest.raises(error, match=r"^stop$"), hold(study, QUIET):
            stop(error)
        assert _claims(study) == []
    with hold(study, QUIET):
        pass


def test_one_thread_may_hold_a_study_over_calls_that_do_and_another_may_not(study: StudyLedger) -> None:
    refused = []

    def other() -> None:
        try:
            with hold(study, QUIET):
                pass
        except UsageError as error:
            refused.append(str(error))

    with hold(study, QUIET) as outer, hold(study, QUIET) as inner:
        assert outer is inner
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1
    assert f"is run by process {os.getpid()} on" in refused[0]


def test_other_studies_are_free(study: StudyLedger) -> None:
    with (
        hold(study, QUIET),
        hold(StudyLedger(study.ledger, "s.more"), QUIET),
        hold(StudyLedger(study.ledger, "t"), QUIET),
    ):
        pass


def test_a_killed_process_of_this_machine_keeps_nobody_out(study: StudyLedger) -> None:
    code = (
        "import sys, time; from rich.console import Console; from results.ledger.ledger import Ledger\n"
        "from results.ledger.store import Store; from search.study.study_ledger import StudyLedger\n"
        "from search.runner.run_lock import hold\n"
        "with hold(StudyLedger(Ledger(Store(sys.argv[1])), 's'), Console(quiet=True)):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, study.ledger.store.uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        message = rf"is run by process {process.pid} on .*: stop that first"
        with pytest.raises(UsageError, match=message), hold(study, QUIET):
            pass
        process.kill()
    assert _claims(study)
    with hold(study, QUIET):
        pass
    assert _claims(study) == []


def test_another_process_of_the_same_number_does_not_count(study: StudyLedger) -> None:
    parent = {**run_lock._this_machine(), "pid": os.getppid(), "started": run_lock._started(os.getppid())}
    _leave_claim(study, parent)
    with pytest.raises(UsageError, match=f"is run by process {os.getppid()} on"), hold(study, QUIET):
        pass
    _leave_claim(study, {**parent, "started": "1"})
    with hold(study, QUIET):
        pass


def test_a_claim_of_another_machine_is_dead_once_nothing_is_heard_of_it(
    study: StudyLedger, quick: float, capsys: pytest.CaptureFixture[str]
) -> None:
    _leave_claim(study, ELSEWHERE)
    began = time.monotonic()
    with hold(study, Console(stderr=True)):
        assert time.monotonic() - began >= quick
    assert "study s was running on another: waiting up to" in capsys.readouterr().err
    assert _claims(study) == []


@pytest.mark.parametrize("hours", [-30, 0, 30])
def test_a_claim_of_another_machine_counts_while_it_changes_whatever_the_clocks(
    study: StudyLedger, quick: float, hours: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, clock = _leave_claim(study, ELSEWHERE), time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 3600 * hours)
    stop = threading.Event()

    def beat() -> None:
        beats = 0
        while not stop.wait(quick / PATIENCE):
            beats += 1
            study.ledger.store.write_bytes(f"claims/s.{token}.beat", json.dumps({"beats": beats}).encode())

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UsageError, match="is run by process 1 on another: stop that first"), hold(study, QUIET):
            pass
    finally:
        stop.set()
        thread.join()


def test_a_process_whose_study_was_taken_learns_it_and_does_not_claim_it_back(study: StudyLedger, quick: float) -> None:
    with hold(study, QUIET) as claim:
        claim.ensure_held()
        for name in _claims(study):
            study.ledger.store.delete(name)
        deadline = time.monotonic() + 10
        while not claim._lost and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(OvertoneError, match="study 's' was taken over by another process"):
            claim.ensure_held()
    assert _claims(study) == []


def test_what_a_power_cut_left_is_taken_over(study: StudyLedger, quick: float) -> None:
    for kind in ("claim", "entering", "beat"):
        study.ledger.store.write_bytes(f"claims/s.{'0' * 32}.{kind}", b"")
    with hold(study, QUIET):
        pass
    assert _claims(study) == []


@pytest.mark.parametrize("name", ["a/b", ".a", ""])
def test_a_bad_name_is_refused_before_anything_is_written(study: StudyLedger, name: str) -> None:
    with pytest.raises(UsageError, match=r"study name \(="), hold(StudyLedger(study.ledger, name), QUIET):
        pass
    assert study.ledger.store.local_root is not None
    assert not study.ledger.store.local_root.exists()


def _publish(study: StudyLedger, who: dict[str, Any], state: str = "running", *, ago_s: float = 0) -> None:
    at = datetime.now(UTC) - timedelta(seconds=ago_s)
    study.write_progress({"state": state, "host": who["host"], "pid": who["pid"], "updated_at": at.isoformat()})


def test_a_study_runs_while_the_process_that_says_so_holds_it(study: StudyLedger) -> None:
    assert not is_running(study)
    me = run_lock._this_process()
    _publish(study, me)
    assert not is_running(study)
    with hold(study, QUIET):
        assert is_running(study)
        _publish(study, me, "finished")
        assert not is_running(study)
        _publish(study, {**me, "pid": 1})  # a crashed one; this process confirms
        assert not is_running(study)


def test_a_study_of_another_machine_runs_if_it_was_heard_of_lately_or_is_now(study: StudyLedger, quick: float) -> None:
    token = _leave_claim(study, ELSEWHERE)
    _publish(study, ELSEWHERE)
    assert is_running(study)
    _publish(study, ELSEWHERE, ago_s=90)
    assert not is_running(study)
    timer = threading.Timer(
        quick / PATIENCE / 2, lambda: study.ledger.store.write_bytes(f"claims/s.{token}.beat", b'{"beats": 8}')
    )
    timer.start()
    assert is_running(study)
    timer.join()


_CONTENDER = """
import os
import sys
from rich.console import Console
from layers import UsageError
from results.ledger.ledger import Ledger
from results.ledger.store import Store
from search.runner import run_lock
from search.study.study_ledger import StudyLedger
study = StudyLedger(Ledger(Store(sys.argv[1])), "s")
study.ledger.store.exists("claims")
run_lock._this_machine = lambda: {"host": str(os.getpid()), "boot": "", "namespace": ""}
run_lock.HEARTBEAT_S = 3.0
print("ready", flush=True)
sys.stdin.readline()
try:
    with run_lock.hold(study, Console(quiet=True)):
        print("runs", flush=True)
        sys.stdin.readline()
except UsageError as error:
    print(error, flush=True)
"""


def test_of_eight_processes_on_s3_exactly_one_goes_on(s3_store: Store) -> None:
    command = [sys.executable, "-c", _CONTENDER, s3_store.uri]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(8)]  # type: ignore[call-overload]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.stdout.readline().strip() for process in processes]
    for process in processes:
        process.communicate("\n", timeout=30)
    assert said.count("runs") == 1
    assert all("study 's' is run by process" in text for text in said if text != "runs")
    assert s3_store.list("claims") == []
