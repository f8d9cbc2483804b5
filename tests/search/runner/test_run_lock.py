"""What a study's progress tells of the process that ran it."""

import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from search.runner.run_lock import ALIVE_S, is_running


def _progress(**of: object) -> dict[str, object]:
    now = datetime.now(UTC).isoformat()
    return {"state": "running", "host": socket.gethostname(), "pid": os.getpid(), "updated_at": now} | of


def test_a_process_of_this_machine_runs_as_long_as_it_is_there() -> None:
    assert is_running(_progress())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert not is_running(_progress(pid=gone.pid))
    assert is_running(_progress(pid=gone.pid, host="another"))


@pytest.mark.parametrize("host", [socket.gethostname(), "another"])
def test_what_was_not_heard_of_for_long_does_not_run(host: str) -> None:
    long_ago = datetime.now(UTC) - timedelta(seconds=ALIVE_S + 1)
    assert not is_running(_progress(host=host, updated_at=long_ago.isoformat()))


def test_what_has_ended_or_never_began_does_not_run() -> None:
    assert not any(map(is_running, ({}, _progress(state="finished"), _progress(state="interrupted"))))
