"""One process at a time runs a study: two would both begin its next trials.

A process claims a study before it loads anything, by files that only it writes: `TOKEN.entering` while it looks at the
claims that are there, then `TOKEN.claim` (who it is) and `TOKEN.beat` (a number that grows with each heartbeat). Of
several that start together each waits until no other is entering; then all see the same claims, and the least token
holds the study (the doorway of Lamport's bakery, "A new solution of Dijkstra's concurrent programming problem", 1974).
This needs nothing of a store but that a listing shows every file that was written before it. Object stores promise
that; a client of NFS lists a folder anew after it has written into it, which each listing that counts follows. (pyarrow
has no conditional writes.) No name is written twice by two, so nobody deletes a claim but the one that was meant.

A claim of this machine is dead when its process is; any other is dead when no heartbeat came while the newcomer
watched, by its own clock, for `PATIENCE` heartbeats. Clocks of two machines are never compared.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from layers import OvertoneError, UsageError
from results.ledger.store import MissingFile
from search.study.study_ledger import StudyLedger

__all__ = ["HEARTBEAT_S", "Claim", "hold", "is_running"]

HEARTBEAT_S = 5.0
"""Seconds after which a running search publishes its progress and renews its claim, whatever happens."""
PATIENCE = 4
"""Heartbeats without a change after which a claim of another machine is dead."""
_CLOCKS_AGREE_S = 60.0
_POLL_S = 0.05
_FOLDER = "claims"

_held = threading.local()
"""Claims of this thread, by store and study, so that a command may hold a study over several calls that do."""
_own_tokens: set[str] = set()
"""Tokens of the claims of this process, of whatever thread."""


@contextmanager
def hold(study: StudyLedger, console: Console) -> Iterator[Claim]:
    """Claim a study for the block; raise `UsageError` if another process runs it.

    A claim that this thread has already is used, and stays.
    """
    held: dict[tuple[str, str], Claim] = _held.__dict__.setdefault("claims", {})
    key = study.ledger.store.uri, study.name
    if key in held:
        yield held[key]
        return
    study.read_progress()  # refuses a bad name before anything is written
    claim = Claim(study)
    try:
        claim.take(console)
        held[key] = claim
        yield claim
    finally:
        held.pop(key, None)
        claim.release()


class Claim:
    """A process's claim to run a study, renewed by a thread until it is released."""

    def __init__(self, study: StudyLedger) -> None:
        self._study = study
        self._files = _ClaimFiles(study)
        self._is_new_store = (root := study.ledger.store.local_root) is not None and not root.exists()
        self._token = uuid.uuid4().hex
        self._beats = 0
        self._lost = False
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name=f"claim of {study.name}", daemon=True)

    def take(self, console: Console) -> None:
        """Take the study; raise `UsageError` if another process has it or is about to."""
        _own_tokens.add(self._token)
        while not self._won(console):
            time.sleep(_POLL_S)
        self._renewing.start()

    def release(self) -> None:
        """Give the study to others. What cannot be deleted is dead once this process has ended."""
        self._ended.set()
        if self._renewing.ident is not None:
            self._renewing.join(HEARTBEAT_S)
        _own_tokens.discard(self._token)
        with suppress(OvertoneError):
            self._withdraw()
            if self._is_new_store and not self._study.exists():
                self._files.remove_empty_folders()

    def ensure_held(self) -> None:
        """Raise `OvertoneError` if another process took the study, because no heartbeat of this one came for long."""
        if self._lost:
            raise OvertoneError(
                f"study {self._study.name!r} was taken over by another process, after this one was silent for long: "
                "this one stops"
            )

    def _won(self, console: Console) -> bool:
        """Try once; False means that all may look different now. Raises `UsageError` if another has the study."""
        for token in self._others("claim"):
            self._refuse_or_bury(token, console)
        self._files.write(self._token, "entering", _this_process())
        if self._others("claim"):
            self._withdraw()
            return False
        self._files.write(self._token, "claim", _this_process())
        if self._files.read(self._token, "entering") is None:  # it took so long that another counts it as dead
            self._withdraw()
            return False
        self._files.delete(self._token, "entering")
        self._wait_for_entering()
        if min(self._files.tokens("claim"), default="") == self._token:
            return True
        self._withdraw()
        return False

    def _wait_for_entering(self) -> None:
        """Wait until no other process is in between looking at the claims and writing its own."""
        seen: dict[str, float] = {}
        while True:
            self._beat()
            others = self._others("entering")
            for token in others:
                waited = time.monotonic() - seen.setdefault(token, time.monotonic())
                who = self._files.read(token, "entering")
                here = who is not None and _is_of_this_machine(who)
                if (here and who is not None and not _lives(who, token)) or waited > PATIENCE * HEARTBEAT_S:
                    self._files.delete(token, "entering")
            if not others:
                return
            time.sleep(_POLL_S)

    def _refuse_or_bury(self, token: str, console: Console) -> None:
        """Raise `UsageError` if a claim is alive, else delete it."""
        who = self._files.read(token, "claim")
        if who is None:
            return
        if _lives(who, token) if _is_of_this_machine(who) else self._beats_soon(token, who, console):
            raise UsageError(
                f"study {self._study.name!r} is run by process {who.get('pid')} on {who.get('host')}: stop that first"
            )
        for kind in ("claim", "beat"):
            self._files.delete(token, kind)

    def _beats_soon(self, token: str, who: Mapping[str, Any], console: Console) -> bool:
        console.print(
            f"study {self._study.name} was running on {who.get('host')}: waiting up to {PATIENCE * HEARTBEAT_S:.0f} s "
            "for a sign of life",
            highlight=False,
        )
        return self._files.changes(token, PATIENCE * HEARTBEAT_S)

    def _others(self, kind: str) -> list[str]:
        return [token for token in self._files.tokens(kind) if token != self._token]

    def _beat(self) -> None:
        self._beats += 1
        self._files.write(self._token, "beat", {"beats": self._beats})

    def _renew(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            with suppress(OvertoneError):  # of a store that is away for a while
                if self._token not in self._files.tokens("claim"):
                    self._lost = True
                    return
                self._beat()

    def _withdraw(self) -> None:
        for kind in ("claim", "entering", "beat"):
            self._files.delete(self._token, kind)


class _ClaimFiles:
    """The claims of a study in its store: `claims/STUDY.TOKEN.KIND`, small JSON."""

    def __init__(self, study: StudyLedger) -> None:
        self._store = study.ledger.store
        self._study = study.name

    def tokens(self, kind: str) -> list[str]:
        names = (path.rpartition("/")[2].removesuffix(f".{kind}") for path in self._store.list(_FOLDER, f".{kind}"))
        pairs = (name.rpartition(".") for name in names)
        return sorted(token for study, _, token in pairs if study == self._study)

    def write(self, token: str, kind: str, value: Mapping[str, Any]) -> None:
        with suppress(MissingFile):  # of the folder, which another removed in this moment
            self._store.write_bytes(self._name(token, kind), json.dumps(value).encode(), durable=False)
            return
        self._store.write_bytes(self._name(token, kind), json.dumps(value).encode(), durable=False)

    def read(self, token: str, kind: str) -> dict[str, Any] | None:
        """Return the content; None if there is no such file, {} if a power cut left nothing of it."""
        try:
            content = self._store.read_bytes(self._name(token, kind))
        except MissingFile:
            return None
        with suppress(ValueError):
            value = json.loads(content)
            return value if isinstance(value, dict) else {}
        return {}

    def delete(self, token: str, kind: str) -> None:
        self._store.delete(self._name(token, kind))

    def remove_empty_folders(self) -> None:
        """Leave nothing of a local store that was made for a claim alone."""
        root = self._store.local_root
        with suppress(OSError):
            if root is not None:
                (root / _FOLDER).rmdir()
                root.rmdir()

    def changes(self, token: str, seconds: float) -> bool:
        """Return whether a heartbeat comes within some seconds of this machine's monotonic clock."""
        before, began = self.read(token, "beat"), time.monotonic()
        while time.monotonic() - began < seconds:
            time.sleep(HEARTBEAT_S / PATIENCE)
            if self.read(token, "claim") is None:
                return False
            if self.read(token, "beat") != before:
                return True
        return False

    def _name(self, token: str, kind: str) -> str:
        return f"{_FOLDER}/{self._study}.{token}.{kind}"


def is_running(study: StudyLedger) -> bool:
    """Return whether a search runs the study now, as far as can be seen without a claim.

    Its published progress must say so, and the process that published it must hold the study. One of another machine
    runs if that progress is recent; if it is not, the clocks may differ, and this watches for a heartbeat.
    """
    progress, files = study.read_progress(), _ClaimFiles(study)
    if progress.get("state") != "running":
        return False
    for token in files.tokens("claim"):
        who = files.read(token, "claim")
        if who is None or (who.get("host"), who.get("pid")) != (progress["host"], progress["pid"]):
            continue
        if _is_of_this_machine(who):
            return _lives(who, token)
        silent = (datetime.now(UTC) - datetime.fromisoformat(progress["updated_at"])).total_seconds()
        return abs(silent) < _CLOCKS_AGREE_S or files.changes(token, 2 * HEARTBEAT_S)
    return False


def _this_process() -> dict[str, Any]:
    return {**_this_machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def _this_machine() -> dict[str, str]:
    """Return what tells machines apart, and containers of one machine, which number their processes alone."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"host": socket.gethostname(), "boot": boot, "namespace": os.readlink("/proc/self/ns/pid")}
    return {"host": socket.gethostname(), "boot": "", "namespace": ""}


def _is_of_this_machine(who: Mapping[str, Any]) -> bool:
    return all(who.get(key) == value for key, value in _this_machine().items())


def _lives(who: Mapping[str, Any], token: str) -> bool:
    """Return whether the process of a claim of this machine exists; another one may have its number by now."""
    pid = int(who["pid"])
    if pid == os.getpid():
        return token in _own_tokens
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    started = _started(pid)
    return started is None or started == who.get("started")


def _started(pid: int) -> str | None:
    """Return when a process began, as a text that no other process of its number has; None if that cannot be seen."""
    with suppress(OSError):
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "ended" if state in "ZX" else rest[18]  # in ticks since the machine's start, whatever its clock
    with suppress(OSError):
        asked = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return asked.stdout.strip() or None
    return None
