"""One process at a time runs a study: two would both begin its next trials."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from layers import UsageError
from search.study.study_ledger import StudyLedger

__all__ = ["ALIVE_S", "HEARTBEAT_S", "ensure_not_running", "is_running"]

HEARTBEAT_S = 5.0
"""Seconds after which a running search publishes its progress, whatever happens."""
ALIVE_S = 60.0
"""Seconds without a heartbeat after which a search counts as stopped."""


def is_running(progress: Mapping[str, Any]) -> bool:
    """Return whether a study's published progress ({} if there is none) says that it runs, and is recent.

    A process of this machine counts as long as it exists.
    """
    if progress.get("state") != "running":
        return False
    silent = (datetime.now(UTC) - datetime.fromisoformat(progress["updated_at"])).total_seconds()
    return silent < ALIVE_S and (progress["host"] != socket.gethostname() or _is_alive(progress["pid"]))


def ensure_not_running(study: StudyLedger, console: Console) -> None:
    """Raise `UsageError` if another process runs the study now.

    For one on another machine this waits a few heartbeats: that machine may have died a moment ago.
    """
    progress = study.read_progress()
    if not is_running(progress) or progress["pid"] == os.getpid():
        return
    host, pid = progress["host"], progress["pid"]
    if host != socket.gethostname():
        console.print(f"study {study.name} was running on {host}: waiting for a sign of life", highlight=False)
        time.sleep(4 * HEARTBEAT_S)
        if study.read_progress().get("updated_at") == progress["updated_at"]:
            return
    raise UsageError(f"study {study.name!r} is run by process {pid} on {host}: stop that first")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
