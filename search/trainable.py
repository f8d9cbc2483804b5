"""A trial on a Ray actor: one epoch a step. The actor, its data and its baseline serve one trial after another."""

from __future__ import annotations

import json
import tempfile
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.result import DONE, SHOULD_CHECKPOINT
from torch import nn

from layers import OvertoneError
from spaces import Network
from trainers.data import Data
from trainers.finetune import Epoch
from trainers.spec import TrialSpec
from trainers.trial import Trial

__all__ = ["MODEL_FILE", "TrialActor"]

MODEL_FILE = "model.safetensors"
"""The packed model in a trial's checkpoint."""


class TrialActor(tune.Trainable):
    """Runs suggestions of `FrontSearcher`. A failing trial reports why and leaves the actor fit for the next."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], data: Data, baseline: nn.Module, network: Network
    ) -> None:
        """Take what all trials share."""
        self._data, self._baseline, self._network = data, baseline, network
        resources = ray.get_runtime_context().get_assigned_resources()
        torch.set_num_threads(max(1, int(resources.get("CPU", 1))))
        self._device = "cuda" if resources.get("GPU", 0) and torch.cuda.is_available() else "cpu"
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Make ready for another trial; the last one's memory is given back."""
        self._config = new_config
        self._started = datetime.now(UTC)
        self._trial: Trial | None = None
        self._packed: bytes | None = None
        self._epochs: Iterator[Epoch] = iter(())
        if self._device == "cuda":
            torch.cuda.empty_cache()
        return True

    def step(self) -> dict[str, Any]:
        """One epoch; the last step carries the whole result, and its checkpoint the packed model."""
        try:
            return self._advance()
        except OvertoneError as error:
            return self._failed(str(error))
        except Exception:
            return self._failed(traceback.format_exc(limit=-3))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Leave the packed model, written by the last step, where a failure is the trial's."""
        if self._packed is not None:
            (Path(checkpoint_dir) / MODEL_FILE).write_bytes(self._packed)

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """A trial whose worker died begins again: its checkpoint is its end."""

    def _advance(self) -> dict[str, Any]:
        if self._trial is None:
            spec = TrialSpec.from_json(self._config["spec"])
            self._trial = Trial(
                spec, data=self._data, baseline=self._baseline, network=self._network, device=self._device
            )
            self._epochs = self._trial.epochs()
        epoch = next(self._epochs, None)
        if epoch is not None and epoch.epoch < self._trial.spec.epochs:
            return {"epoch": epoch.epoch, "val_top1": epoch.val_top1}
        result = self._trial.result().to_json()
        with tempfile.TemporaryDirectory() as folder:
            self._trial.save(Path(folder) / MODEL_FILE)
            self._packed = (Path(folder) / MODEL_FILE).read_bytes()
        measured = {name: result[name] for name in ("val_top1", "latency_ms", "latency_b64_ms")}
        objectives = {**measured, **result["cost"]}
        return {**self._report("finished"), **objectives, "result": json.dumps(result), SHOULD_CHECKPOINT: True}

    def _failed(self, error: str) -> dict[str, Any]:
        run = 0 if self._trial is None else len(self._trial.curve)
        return {**self._report("failed"), "error": error, "epochs_run": run}

    def _report(self, status: str) -> dict[str, Any]:
        device = torch.cuda.get_device_name() if self._device == "cuda" else "cpu"
        where = {"device": device, "threads": torch.get_num_threads()}
        return {DONE: True, "status": status, "started": self._started.isoformat(), **where}
