"""The Ray cluster: connecting, and what one trial takes of it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

import ray

from layers import OvertoneError, UsageError

__all__ = ["Resources", "connected"]

_KNOCK_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What each trial takes, and how many run at once."""

    cpus_per_trial: float = 1
    gpus_per_trial: float | Literal["auto"] | None = None
    """`None`: one where the cluster has GPUs, else none; `auto`: what one trial needs of a GPU's memory."""
    concurrency: int | None = None
    """Most trials at once; `None`: as many as fit."""
    address: str | None = None
    """A running cluster, `auto` or `host:port`; `None` starts Ray on this machine (or uses RAY_ADDRESS)."""
    ceiling: int | None = None
    """Most trials at once whatever nodes join, settled by `resolved`; `None`: as many as fit at any time."""

    def __post_init__(self) -> None:
        if not 0 < self.cpus_per_trial < inf:
            raise UsageError(f"cpus_per_trial (={self.cpus_per_trial}) must be above 0.")
        if isinstance(self.gpus_per_trial, str | None):
            if self.gpus_per_trial not in ("auto", None):
                raise UsageError(f"gpus_per_trial (={self.gpus_per_trial!r}) must be a number of at least 0, or auto.")
        elif not 0 <= self.gpus_per_trial < inf:
            raise UsageError(f"gpus_per_trial (={self.gpus_per_trial}) must be at least 0, or auto.")
        if self.concurrency is not None and self.concurrency < 1:
            raise UsageError(f"concurrency (={self.concurrency}) must be at least 1.")

    def resolved(self, share: Callable[[], float] = lambda: 1.0) -> Resources:
        """The same with every `None` and `auto` decided by the connected cluster, and `share` for the GPU's part.

        Raises `UsageError` where the cluster has too little.
        """
        have = ray.cluster_resources()
        cpus, gpus = have.get("CPU", 0), have.get("GPU", 0)
        wanted = self.gpus_per_trial
        if isinstance(wanted, str | None):
            wanted = (share() if wanted == "auto" else 1.0) if gpus else 0.0
        if wanted and not gpus:
            raise UsageError(f"gpus_per_trial (={wanted:g}) asks for a GPU and the Ray cluster has none; allowed is 0.")
        if wanted > gpus or self.cpus_per_trial > cpus:
            raise UsageError(
                f"A trial asks for {self.cpus_per_trial:g} CPUs and {wanted:g} GPUs, the Ray cluster has {cpus:g} and "
                f"{gpus:g} in all."
            )
        fitting = replace(self, gpus_per_trial=wanted).fitting()
        at_once = min(fitting, self.concurrency or fitting)
        grows = self.address is not None or bool(os.environ.get("RAY_ADDRESS"))
        ceiling = self.concurrency if grows else at_once
        return replace(self, gpus_per_trial=wanted, concurrency=at_once, ceiling=ceiling)

    def fitting(self) -> int:
        """How many trials fit the connected cluster as it is now."""
        have = ray.cluster_resources()
        fitting = int(have.get("CPU", 0) / self.cpus_per_trial)
        return min(fitting, int(have.get("GPU", 0) / self.gpus_per_trial)) if self.gpus_per_trial else fitting


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Be connected to Ray; a connection that was there stays, one made here is given up at the end.

    Meanwhile SIGTERM (of `kill` or a cluster's manager) stops the process as Ctrl-C does; Ray would abort it.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = address or os.environ.get("RAY_ADDRESS")
    _check_reachable(address)
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise OvertoneError(f"The Ray cluster at address {address or 'local'!r} cannot be reached: {reason}") from error
    try:
        with _terminable():
            yield
    finally:
        ray.shutdown()


@contextmanager
def _terminable() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # where no signal can be handled
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _check_reachable(address: str | None) -> None:
    """Knock at `host:port` first: Ray itself would wait for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()
    except (OSError, ValueError) as error:
        raise OvertoneError(f"The Ray cluster at address {address!r} cannot be reached: {error}.") from error
