"""What a run waits for while Ray has no room for it: said after a while, and again ever more seldom."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.tune import Callback
from rich.console import Console

from results.formatting import format_duration

__all__ = ["WaitingCallback", "WaitingNotice"]

_FIRST_S = 15.0
"""Seconds before the first word: a worker needs about as long to start."""
_SELDOM_S = 600.0
"""Most seconds between two words."""


class WaitingNotice:
    """Says what is waited for, as long as `waits` is called."""

    def __init__(self, console: Console, what: str, *, cpus: float, gpus: float) -> None:
        """Begin to wait for room for `what`, which needs this many CPUs and GPUs."""
        self._console = console
        self._what = what
        self._needs = {"CPU": cpus, "GPU": gpus}
        self.ends()

    def ends(self) -> None:
        """Begin anew: nothing is waited for now."""
        self._since = time.monotonic()
        self._next = _FIRST_S

    def waits(self) -> None:
        """Say what is waited for, if it is time to."""
        waited = time.monotonic() - self._since
        if waited >= self._next:
            self._next = waited + min(waited, _SELDOM_S)
            self._console.print(f"{self._line()} ({format_duration(waited)} so far)", highlight=False, soft_wrap=True)

    def _line(self) -> str:
        there, free = ray.cluster_resources(), ray.available_resources()
        address = ray.get_runtime_context().gcs_address
        if all(free.get(kind, 0) >= needed for kind, needed in self._needs.items()):
            return f"waiting for Ray at {address} to start a worker"
        needs = " and ".join(f"{needed:g} {kind}" for kind, needed in self._needs.items() if needed)
        has = " and ".join(
            f"{free.get(kind, 0):g} of {there.get(kind, 0):g} {kind}s are free"
            for kind, needed in self._needs.items()
            if needed
        )
        return f"waiting for Ray at {address}: {self._what} needs {needs}, {has}"


class WaitingCallback(Callback):
    """Says what Ray Tune waits for while not one trial runs."""

    def __init__(self, notice: WaitingNotice) -> None:
        self._notice = notice
        self._running: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Leave nothing for Ray Tune's own snapshot of the experiment."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Say it if it is time to."""
        if self._running:
            self._notice.ends()
        else:
            self._notice.waits()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count one more running trial."""
        self._running.add(trial.trial_id)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count one less."""
        self._running.discard(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count one less."""
        self._running.discard(trial.trial_id)
