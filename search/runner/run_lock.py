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
from results.ledger.ledger import Ledger
from search.runner.progress import ALIVE_S, HEARTBEAT_S

__all__ = ["ensure_not_running", "is_running"]


def is_running(said: Mapping[str, Any]) -> bool:
    """Whether a study's progress ({} where there is none) says that it runs, and its process was heard of lately.

    One of this machine counts as long as it is there.
    """
    if said.get("state") != "running":
        return False
    silent = (datetime.now(UTC) - datetime.fromisoformat(said["updated_at"])).total_seconds()
    return silent < ALIVE_S and (said["host"] != socket.gethostname() or _is_alive(said["pid"]))


def ensure_not_running(ledger: Ledger, name: str, console: Console) -> None:
    """Raise `UsageError` where another process runs the study now.

    One on another machine is listened to for some time: that machine may have died a moment ago.
    """
    said = ledger.read_progress(name) or {}
    if not is_running(said) or said["pid"] == os.getpid():
        return
    if said["host"] != socket.gethostname():
        console.print(f"study {name} was being run on {said['host']}: waiting whether it still is", highlight=False)
        time.sleep(4 * HEARTBEAT_S)
        if (ledger.read_progress(name) or {}).get("updated_at") == said["updated_at"]:
            return
    raise UsageError(f"study {name!r} is being run by process {said['pid']} on {said['host']}; stop that first.")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
