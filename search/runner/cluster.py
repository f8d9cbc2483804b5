"""The Ray cluster: connecting to it, and what one trial takes of it."""

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

from layers.errors import OvertoneError, UsageError, first_line, translate_errors

__all__ = ["Resources", "connected"]

_REACHABLE_S = 5.0
_ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a trial without GPUs leaves CUDA_VISIBLE_DEVICES as it is
    "RAY_AIR_NEW_OUTPUT": "0",  # progress is shown by `search.runner.progress`
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger keeps what Ray Tune would write to CSV and JSON
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # nobody reads Ray Tune's own snapshots
}
"""Settings that Ray reads from the environment and nowhere else."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What each trial takes, and how many run at once."""

    cpus_per_trial: float = 1
    gpus_per_trial: float | Literal["auto"] | None = None
    """`None`: one if the cluster has GPUs, else none; `auto`: the part of a GPU whose memory one trial needs."""
    concurrency: int | None = None
    """Most trials at once; `None`: as many as fit."""
    address: str | None = None
    """A running cluster, `auto` or `host:port`; `None` starts Ray on this machine (or uses RAY_ADDRESS)."""
    ceiling: int | None = None
    """Most trials at once whatever nodes join, set by `resolved`; `None`: as many as fit at any time."""

    def __post_init__(self) -> None:
        if not 0 < self.cpus_per_trial < inf:
            raise UsageError(f"cpus_per_trial (={self.cpus_per_trial}) must be above 0")
        if isinstance(self.gpus_per_trial, str | None):
            if self.gpus_per_trial not in ("auto", None):
                raise UsageError(f"gpus_per_trial (={self.gpus_per_trial!r}) must be a number of at least 0, or auto")
        elif not 0 <= self.gpus_per_trial < inf:
            raise UsageError(f"gpus_per_trial (={self.gpus_per_trial}) must be at least 0, or auto")
        if self.concurrency is not None and self.concurrency < 1:
            raise UsageError(f"concurrency (={self.concurrency}) must be at least 1")

    def resolved(self, gpu_share: Callable[[], float] = lambda: 1.0) -> Resources:
        """Return a copy with `None` and `auto` replaced by values for the connected cluster.

        `gpu_share` computes the part of a GPU for `auto`. Raises `UsageError` if the cluster has too little.
        """
        available = ray.cluster_resources()
        cpus = available.get("CPU", 0)
        gpus = available.get("GPU", 0)
        per_trial = self.gpus_per_trial
        if isinstance(per_trial, str | None):
            per_trial = (gpu_share() if per_trial == "auto" else 1.0) if gpus else 0.0
        if per_trial and not gpus:
            raise UsageError(f"gpus_per_trial (={per_trial:g}) must be 0: the Ray cluster has no GPU")
        if per_trial > gpus or self.cpus_per_trial > cpus:
            raise UsageError(
                f"a trial needs {self.cpus_per_trial:g} CPUs and {per_trial:g} GPUs, the Ray cluster has {cpus:g} and "
                f"{gpus:g} in all"
            )
        fitting = replace(self, gpus_per_trial=per_trial).fitting()
        at_once = min(fitting, self.concurrency or fitting)
        grows = self.address is not None or bool(os.environ.get("RAY_ADDRESS"))
        ceiling = self.concurrency if grows else at_once
        return replace(self, gpus_per_trial=per_trial, concurrency=at_once, ceiling=ceiling)

    def fitting(self) -> int:
        """Return how many trials fit the connected cluster as it is now."""
        available = ray.cluster_resources()
        fitting = int(available.get("CPU", 0) / self.cpus_per_trial)
        return min(fitting, int(available.get("GPU", 0) / self.gpus_per_trial)) if self.gpus_per_trial else fitting

    def line(self) -> str:
        """Return resolved resources in words."""
        each = f"each on {self.cpus_per_trial:g} CPU and {self.gpus_per_trial:g} GPU"
        return f"up to {self.concurrency} at a time, {each}"


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to Ray for the block; a connection that was there is used, and stays.

    Meanwhile SIGTERM (of `kill` or a cluster's manager) stops the process as Ctrl-C does; Ray would abort it.
    """
    with _ray_settings():
        if ray.is_initialized():
            yield
            return
        address = address or os.environ.get("RAY_ADDRESS")
        failure = f"cannot reach the Ray cluster at address {address or 'local'!r}"
        _check_reachable(address, failure)
        with translate_errors(failure, ConnectionError, ValueError, RuntimeError):
            ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        try:
            with _terminable():
                yield
        finally:
            ray.shutdown()


@contextmanager
def _ray_settings() -> Iterator[None]:
    """Give Ray its settings for the block. A variable that the user has set keeps its value.

    Ray Tune's complaint of trials that "did not complete" is silenced too: they were run again, and did.
    """
    missing = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    logger = logging.getLogger("ray.tune.tune")
    level = logger.level
    os.environ.update(missing)
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name in missing:
            os.environ.pop(name, None)


@contextmanager
def _terminable() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # no other thread can handle a signal
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _check_reachable(address: str | None, failure: str) -> None:
    """Try `host:port` first: Ray itself would wait for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_REACHABLE_S).close()
    except (OSError, ValueError) as error:
        raise OvertoneError(f"{failure}: {first_line(error)}") from error
