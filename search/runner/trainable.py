"""A trial on a Ray actor: its start, then an epoch a step. An actor serves one trial after another.

A long trial writes a checkpoint to the store now and then, under its id in the ledger. If the worker, the node or the
whole search dies, the next run of the trial goes on from there. At its end the packed model takes the checkpoint's
place, for the driver to keep or to delete. Ray's own checkpoints are not used: they would be written as well, and each
makes Ray Tune save the state of all trials.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.result import DONE
from torch import nn

from layers import OvertoneError
from results.ledger.ledger import Ledger
from results.ledger.store import Store
from search.study.study_ledger import checkpoint_name
from spaces import Network, load_model
from spaces.portable.skeleton import Skeleton
from trainers.data import Data
from trainers.runtime.device import keep_freed_memory
from trainers.runtime.latency import model_latency, trace_skeleton
from trainers.runtime.place import LATENCY, Place
from trainers.spec import TrialSpec
from trainers.training.loop import Epoch
from trainers.trial import Trial

__all__ = ["TrialActor"]

_FILE = "trial.safetensors"
_CHECKPOINT_S = 30.0
"""Seconds of work that a crash may cost, or an epoch if that takes longer."""


class _StoreError(OvertoneError):
    """The store cannot be written, which is no fault of the trial: the search should stop."""


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
        skeleton: Skeleton | None = None,
    ) -> None:
        """Take what all trials share; `checkpoint_s` are the least seconds between two checkpoints of a trial."""
        self._data = data
        self._baseline = baseline
        self._network = network
        self._store = Store(store, check=False)
        self._study = study
        self._checkpoint_s = checkpoint_s
        self._skeleton = skeleton
        resources = ray.get_runtime_context().get_assigned_resources()
        torch.set_num_threads(max(1, int(resources.get("CPU", 1))))
        self._device = "cuda" if resources.get("GPU", 0) and torch.cuda.is_available() else "cpu"
        keep_freed_memory()
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Prepare for another trial, and release the memory of the last one."""
        self._config = new_config
        self._started = datetime.now(UTC)
        self._trial: Trial | None = None
        self._epochs: Iterator[Epoch] = iter(())
        self._saved = 0.0
        if self._device == "cuda":
            torch.cuda.empty_cache()
        return True

    def step(self) -> dict[str, Any]:
        """Run the start, or an epoch; report what was measured so far."""
        try:
            return self._advance()
        except _StoreError as error:
            return {**self._report("store_failed"), "error": str(error), DONE: True}
        except OvertoneError as error:
            return self._failure(str(error))
        except Exception:
            return self._failure(traceback.format_exc(limit=-3))

    def _advance(self) -> dict[str, Any]:
        if self._trial is None and (latency := self._earlier_latency()) is not None:
            return {**self._report("timed"), **latency, DONE: True}
        if self._trial is None:
            self._trial = self._start()
            self._epochs = self._trial.epochs()
            self._saved = time.monotonic()
        else:
            next(self._epochs)
            if not self._trial.ended and time.monotonic() - self._saved >= self._checkpoint_s:
                self._save(self._trial.checkpoint)
                self._saved = time.monotonic()
        result = self._trial.result().to_json()
        scores = [result["init_score"], *(epoch["score"] for epoch in result["history"])]
        measured = {"result": json.dumps(result), "scores": scores, **result["cost"]}
        if not self._trial.ended:
            return {**self._report("running"), **measured}
        final = {name: result[name] for name in ("score", *LATENCY)}
        model_sha256 = self._save(self._trial.save)
        return {**self._report("finished"), **measured, **final, "model_sha256": model_sha256, DONE: True}

    def _earlier_latency(self) -> dict[str, Any] | None:
        """Return the latency of a trial that another study has run: its own if it was taken like here, else anew.

        None if there is no such trial, or its model cannot be read any more: it is trained then.
        """
        earlier = self._config.get("earlier")
        if earlier is None:
            return None
        spec = TrialSpec.from_json(self._config["spec"])
        if Place.of(spec.runtime, spec.latency_threads, self._device).has_latency(earlier):
            return {name: earlier[name] for name in LATENCY}
        try:
            model = load_model(Ledger(self._store).model_path(str(earlier["model_sha256"])), model=self._baseline)
        except OvertoneError:
            return None
        shape = self._data.val.image_shape
        latency = model_latency(
            model,
            shape,
            self._device,
            runtime=spec.runtime,
            threads=spec.latency_threads,
            skeleton=lambda: self._skeleton or trace_skeleton(self._baseline, shape),
        )
        return asdict(latency)

    def _start(self) -> Trial:
        """Return the trial as its checkpoint left it, or at its start if there is no checkpoint that can be used."""
        spec = TrialSpec.from_json(self._config["spec"])
        shared: dict[str, Any] = {
            "data": self._data,
            "baseline": self._baseline,
            "network": self._network,
            "skeleton": self._skeleton,
        }
        if self._store.exists(self._checkpoint):
            with tempfile.TemporaryDirectory() as folder, contextlib.suppress(OvertoneError):
                path = Path(folder) / _FILE
                path.write_bytes(self._store.read_bytes(self._checkpoint))
                return Trial(spec, **shared, device=self._device, resume_from=path)
        return Trial(spec, **shared, device=self._device)

    def _save(self, write: Callable[[Path], None]) -> str:
        """Put the file that `write` makes of the trial into the store; return its SHA-256."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / _FILE
            write(path)
            content = path.read_bytes()
        try:
            self._store.write_bytes(self._checkpoint, content)
        except OvertoneError as error:
            raise _StoreError(str(error)) from error
        return hashlib.sha256(content).hexdigest()

    @property
    def _checkpoint(self) -> str:
        return checkpoint_name(self._study, self._config["trial"])

    def _failure(self, error: str) -> dict[str, Any]:
        epochs_run = 0 if self._trial is None else len(self._trial.history)
        return {**self._report("failed"), "error": error, "epochs_run": epochs_run, DONE: True}

    def _report(self, status: str) -> dict[str, Any]:
        device = torch.cuda.get_device_name() if self._device == "cuda" else "cpu"
        return {
            "status": status,
            "started": self._started.isoformat(),
            "device": device,
            "threads": torch.get_num_threads(),
        }
