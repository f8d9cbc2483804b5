"""What a run says while Ray has no room for it."""

import io
import time
from types import SimpleNamespace

import pytest
import ray
from rich.console import Console

from search.runner.waiting import WaitingCallback, WaitingNotice


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A Ray of 8 CPUs and 2 GPUs, of which these are free."""
    free = {"CPU": 0.5}
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    monkeypatch.setattr(ray, "available_resources", lambda: free)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"))
    return free


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


def test_a_busy_cluster_is_named_with_what_is_missing_ever_more_seldom(
    busy: dict[str, float], clock: SimpleNamespace
) -> None:
    said = io.StringIO()
    callback = WaitingCallback(WaitingNotice(Console(file=said), "a trial", cpus=1, gpus=0.25))
    told = []
    for _ in range(3600):
        clock.now += 1
        callback.on_step_end(0, [])
        if (lines := said.getvalue().count("\n")) > len(told):
            told.append(clock.now - 1000)
            assert lines == len(told)
    assert told == [15, 30, 60, 120, 240, 480, 960, 1560, 2160, 2760, 3360]
    first = said.getvalue().splitlines()[0]
    wanted = "a trial needs 1 CPU and 0.25 GPU, 0.5 of 8 CPUs are free and 0 of 2 GPUs are free"
    assert first == f"waiting for Ray at 10.0.0.1:6379: {wanted} (15 s so far)"


def test_a_worker_that_is_slow_to_start_is_told_apart(busy: dict[str, float], clock: SimpleNamespace) -> None:
    said = io.StringIO()
    busy["CPU"] = 4.0
    notice = WaitingNotice(Console(file=said), "a trial", cpus=1, gpus=0)
    clock.now += 20
    notice.waits()
    assert said.getvalue() == "waiting for Ray at 10.0.0.1:6379 to start a worker (20 s so far)\n"


def test_nothing_is_said_while_a_trial_runs(busy: dict[str, float], clock: SimpleNamespace) -> None:
    said = io.StringIO()
    callback = WaitingCallback(WaitingNotice(Console(file=said), "a trial", cpus=1, gpus=0))
    trial = SimpleNamespace(trial_id="a")
    for end in (callback.on_trial_complete, callback.on_trial_error):
        clock.now += 10
        callback.on_step_end(0, [])
        callback.on_trial_start(0, [], trial)
        clock.now += 1000
        callback.on_step_end(0, [])
        end(0, [], trial)
        callback.on_step_end(0, [])
    assert said.getvalue() == ""
