"""The Ray cluster: connecting to it, and what one trial takes of it."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
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
    if ray.is_initialized():
        with _ray_settings(_ENVIRONMENT):
            yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    starts_here = address in (None, "local")
    failure = f"cannot reach the Ray cluster at address {address!r}"
    if starts_here:
        failure = "cannot start Ray on this machine"
    _check_reachable(address, failure)
    with _ray_settings({**_ENVIRONMENT, **(_settings_of_folders(failure) if starts_here else {})}):
        with _file_errors(failure), translate_errors(failure, ray.exceptions.RayError, ValueError, RuntimeError):
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


def _settings_of_folders(failure: str) -> dict[str, str]:
    """Return what a new Ray needs where its usual folders cannot be written.

    These are the temporary folder of TMPDIR, and the home folder, in which it would keep the token that its processes
    know each other by.
    """
    settings: dict[str, str] = {}
    with _file_errors(failure):
        scratch = tempfile.gettempdir()
    named = os.environ.get("TMPDIR")
    if named and os.path.realpath(named) != os.path.realpath(scratch):
        settings["RAY_TMPDIR"] = scratch
    if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() and not _has_ray_home():
        settings["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return settings


def _has_ray_home() -> bool:
    """Return whether Ray's token is in the home folder, or can be put there."""
    try:
        folder = Path.home() / ".ray"
        if (folder / "auth_token").exists():
            return True
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except (OSError, RuntimeError):
        return False
    return True


@contextmanager
def _file_errors(failure: str) -> Iterator[None]:
    """Raise `OvertoneError` with the path at fault if the block cannot use a file or reach another machine."""
    try:
        yield
    except OSError as error:
        path = "" if error.filename is None else f" ({str(error.filename)!r})"
        raise OvertoneError(f"{failure}: {first_line(error)}{path}") from error


@contextmanager
def _ray_settings(settings: Mapping[str, str]) -> Iterator[None]:
    """Give Ray its settings for the block. A variable that the user has set keeps its value.

    Ray Tune's complaint of trials that "did not complete" is silenced too: they were run again, and did.
    """
    missing = {name: value for name, value in settings.items() if name not in os.environ}
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
