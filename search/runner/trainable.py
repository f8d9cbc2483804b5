"""A trial on a Ray actor: its start, then an epoch a step. An actor serves one trial after another.

A trial that takes long leaves a checkpoint in the store now and then, under the name that its suggestion has in the
ledger, so that whoever runs it again, after the worker, the node or the whole search has died, goes on from there.
At its end the packed model takes the checkpoint's place, for the driver to keep or to delete. Ray's own checkpoints are
not used: they would be written beside, and each makes Ray Tune save the state of all trials.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.result import DONE
from torch import nn

from layers import OvertoneError
from results.ledger.store import Store
from spaces import Network
from trainers.data import Data
from trainers.runtime.device import keep_freed_memory
from trainers.spec import TrialSpec
from trainers.training.loop import Epoch
from trainers.trial import Trial

__all__ = ["TrialActor", "checkpoint_name"]

_FILE = "trial.safetensors"

_CHECKPOINT_S = 30.0
"""Seconds of work that a crash may cost, or an epoch where that takes longer."""


class _LostError(OvertoneError):
    """The store cannot be written, which is no fault of the trial: the search had better stop."""


def checkpoint_name(study: str, trial: str) -> str:
    """Where in the store an unfinished trial is kept, and the packed model of one that has just ended."""
    return f"checkpoints/{study}/{trial}.safetensors"


class TrialActor(tune.Trainable):
    """Runs suggestions of `FrontSearcher`. A failing trial reports why and leaves the actor fit for the next."""

    def setup(  # type: ignore[override]
        self,
        config: dict[str, Any],
        data: Data,
        baseline: nn.Module,
        network: Network,
        store: str,
        study: str,
        checkpoint_s: float = _CHECKPOINT_S,
    ) -> None:
        """Take what all trials share; `checkpoint_s` are the least seconds between two checkpoints of a trial."""
        self._data, self._baseline, self._network = data, baseline, network
        self._store, self._study, self._checkpoint_s = Store(store), study, checkpoint_s
        resources = ray.get_runtime_context().get_assigned_resources()
        torch.set_num_threads(max(1, int(resources.get("CPU", 1))))
        self._device = "cuda" if resources.get("GPU", 0) and torch.cuda.is_available() else "cpu"
        keep_freed_memory()
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Make ready for another trial; the last one's memory is given back."""
        self._config = new_config
        self._started = datetime.now(UTC)
        self._trial: Trial | None = None
        self._epochs: Iterator[Epoch] = iter(())
        if self._device == "cuda":
            torch.cuda.empty_cache()
        return True

    def step(self) -> dict[str, Any]:
        """The start, or an epoch: each report carries what was measured so far."""
        try:
            return self._advance()
        except _LostError as error:
            return {**self._about("lost"), "error": str(error), DONE: True}
        except OvertoneError as error:
            return self._failed(str(error))
        except Exception:
            return self._failed(traceback.format_exc(limit=-3))

    def _advance(self) -> dict[str, Any]:
        if self._trial is None:
            self._trial = self._begin()
            self._epochs, self._kept = self._trial.epochs(), time.monotonic()
        else:
            next(self._epochs)
            if not self._trial.ended and time.monotonic() - self._kept >= self._checkpoint_s:
                self._leave(self._trial.checkpoint)
                self._kept = time.monotonic()
        result = self._trial.result().to_json()
        accuracies = [result["init_score"], *(epoch["val_top1"] for epoch in result["history"])]
        known = {"result": json.dumps(result), "accuracies": accuracies, **result["cost"]}
        if not self._trial.ended:
            return {**self._about("running"), **known}
        measured = {name: result[name] for name in ("val_top1", "latency_ms", "latency_b64_ms")}
        packed = {"model_sha256": self._leave(self._trial.save)}
        return {**self._about("finished"), **known, **measured, **packed, DONE: True}

    def _begin(self) -> Trial:
        """The trial where its checkpoint left it; at its start where there is none that can be used."""
        spec = TrialSpec.from_json(self._config["spec"])
        shared: dict[str, Any] = {"data": self._data, "baseline": self._baseline, "network": self._network}
        if self._store.exists(self._checkpoint):
            with tempfile.TemporaryDirectory() as folder, contextlib.suppress(OvertoneError):
                path = Path(folder) / _FILE
                path.write_bytes(self._store.read_bytes(self._checkpoint))
                return Trial(spec, **shared, device=self._device, resume_from=path)
        return Trial(spec, **shared, device=self._device)

    def _leave(self, write: Callable[[Path], None]) -> str:
        """Put into the store what `write` makes of the trial; gives its SHA-256."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / _FILE
            write(path)
            content = path.read_bytes()
        try:
            self._store.write_bytes(self._checkpoint, content)
        except OvertoneError as error:
            raise _LostError(str(error)) from error
        return hashlib.sha256(content).hexdigest()

    @property
    def _checkpoint(self) -> str:
        return checkpoint_name(self._study, self._config["trial"])

    def _failed(self, error: str) -> dict[str, Any]:
        run = 0 if self._trial is None else len(self._trial.history)
        return {**self._about("failed"), "error": error, "epochs_run": run, DONE: True}

    def _about(self, status: str) -> dict[str, Any]:
        device = torch.cuda.get_device_name() if self._device == "cuda" else "cpu"
        where = {"device": device, "threads": torch.get_num_threads()}
        return {"status": status, "started": self._started.isoformat(), **where}
