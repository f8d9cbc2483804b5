"""One process at a time runs a study: two would both begin its next trials."""

from __future__ import annotations

import os
import socket
import time
from datetime import UTC, datetime

from rich.console import Console

from layers import UsageError
from results.ledger import Ledger
from search.run.progress import ALIVE_S, HEARTBEAT_S

__all__ = ["check_alone"]


def check_alone(ledger: Ledger, name: str, console: Console) -> None:
    """Raise `UsageError` where another process runs the study now.

    One on another machine is listened to for some time: that machine may have died a moment ago.
    """
    said = ledger.read_progress(name) or {}
    silent = (datetime.now(UTC) - datetime.fromisoformat(said["updated_at"])).total_seconds() if said else 0.0
    if said.get("state") != "running" or said["pid"] == os.getpid() or silent > ALIVE_S:
        return
    if said["host"] == socket.gethostname():
        alive = _is_alive(said["pid"])
    else:
        console.print(f"study {name} was being run on {said['host']}: waiting whether it still is", highlight=False)
        time.sleep(4 * HEARTBEAT_S)
        alive = (ledger.read_progress(name) or {}).get("updated_at") != said["updated_at"]
    if alive:
        raise UsageError(f"study {name!r} is being run by process {said['pid']} on {said['host']}; stop that first.")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
