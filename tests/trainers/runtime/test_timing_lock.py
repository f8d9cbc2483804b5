"""One timing at a time: threads, processes, a holder that dies, and folders without locks."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from layers import OvertoneWarning
from trainers.runtime import timing_lock as module
from trainers.runtime.timing_lock import timing_lock

HOLD = """
import sys, time
from trainers.runtime.timing_lock import timing_lock
with timing_lock():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder():
    """Another process, which holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_whoever_dies_lets_go(holder):
    taken = threading.Event()

    def take() -> None:
        with timing_lock():
            taken.set()

    thread = threading.Thread(target=take)
    thread.start()
    assert not taken.wait(0.3)
    os.kill(holder.pid, signal.SIGKILL)
    assert taken.wait(10)
    thread.join()


def test_after_much_patience_a_timing_goes_on_beside_the_other(holder, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE_S", 0.1)
    told = r"timed beside another process, which has held .*timing-.*\.lock for ten"
    with pytest.warns(OvertoneWarning, match=told), timing_lock():
        pass


def test_threads_take_turns_and_a_holder_may_take_it_again():
    inside, most = [], []

    def work() -> None:
        for _ in range(5):
            with timing_lock(), timing_lock():
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 15


def test_without_a_folder_for_the_lock_nothing_is_held(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("OVERTONE_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path / "file"))
    with timing_lock():
        pass
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path))
    with timing_lock():
        assert list(tmp_path.glob("timing-*.lock"))


def test_the_errors_of_a_timing_are_its_own():
    with pytest.raises(OSError, match=r"^of the block$"), timing_lock():
        raise OSError("of the block")
    with timing_lock():
        pass
