"""One trial: compress, measure, fine-tune, measure again, keep the packed model.

Runs by a plain function call or as `python -m trainers.trial spec.json`, without Ray and Optuna.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layers import Cost, OvertoneError, UsageError, compress_model
from spaces import Network, build_model, load_weights, save_model, state_sha256
from spaces.blocks import Granularity
from trainers.data import Data, load_data
from trainers.device import default_device, parse_device
from trainers.evaluate import Evaluation, evaluate, latency_ms
from trainers.finetune import Epoch, finetune
from trainers.spec import TrialSpec
from trainers.start import begin

__all__ = ["Trial", "TrialResult", "load_baseline"]


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What a finished trial measured."""

    spec_digest: str
    config_digest: str
    cost: Cost
    val_top1: float
    """Share of validation images, after the last epoch."""
    val_loss: float
    zero_shot_top1: float
    """The same before fine-tuning."""
    latency_ms: float | None
    curve: tuple[Epoch, ...]
    compress_s: float
    """Compression and its start: calibration, where that is the start."""
    finetune_s: float
    evaluate_s: float
    """Validation before fine-tuning, and latency; later validation counts as fine-tuning."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {**asdict(self), "cost": {**asdict(self.cost), "flops": self.cost.flops}}


class Trial:
    """A trial under way: exhaust `epochs()`, then ask for `result()` and `save()`.

    The baseline is the uncompressed network with its trained weights; it is not changed.
    """

    def __init__(
        self, spec: TrialSpec, *, data: Data, baseline: nn.Module, network: Network, device: torch.device | str
    ) -> None:
        self.spec, self.data, self.network, self.device = spec, data, network, torch.device(device)
        self.baseline = baseline
        begun = time.perf_counter()
        self.model = compress_model(baseline, network.forms(spec.config))
        begin(spec.start, self.model, baseline, data, seed=spec.seed, device=self.device)
        self._compress_s = time.perf_counter() - begun
        begun = time.perf_counter()
        self.zero_shot = self._validate()
        self._evaluate_s = time.perf_counter() - begun
        self.curve: list[Epoch] = []

    def epochs(self) -> Iterator[Epoch]:
        """Fine-tune, an epoch at a time."""
        if self.spec.epochs == 0:
            return
        spec = self.spec
        for epoch in finetune(
            self.model,
            self.data,
            spec.schedule,
            epochs=spec.epochs,
            seed=spec.seed,
            device=self.device,
            teacher=self.baseline if spec.schedule.distillation else None,
        ):
            self.curve.append(epoch)
            yield epoch

    def result(self) -> TrialResult:
        """What was measured so far; latency is measured now, where the spec asks for it."""
        begun = time.perf_counter()
        latency = latency_ms(self.model, _image(self.data), self.device) if self.spec.latency else None
        last = self.curve[-1] if self.curve else None
        return TrialResult(
            spec_digest=self.spec.digest(self.network),
            config_digest=self.network.digest(self.spec.config),
            cost=self.network.cost(self.spec.config),
            val_top1=self.zero_shot.top1 if last is None else last.val_top1,
            val_loss=self.zero_shot.loss if last is None else last.val_loss,
            zero_shot_top1=self.zero_shot.top1,
            latency_ms=latency,
            curve=tuple(self.curve),
            compress_s=self._compress_s,
            finetune_s=sum(epoch.seconds for epoch in self.curve),
            evaluate_s=self._evaluate_s + time.perf_counter() - begun,
        )

    def save(self, path: str | Path) -> None:
        """Write the packed model, with what is needed to run it and where it comes from."""
        data = self.data
        card = {
            "model": self.spec.model,
            "classes": data.classes,
            "channels": data.channels,
            "image_size": list(_image(data)[1:]),
            "mean": list(data.mean),
            "std": list(data.std),
            "spec": self.spec.to_json(),
        }
        save_model(self.model, path, card=card)

    def _validate(self) -> Evaluation:
        return evaluate(self.model, self.data.val, mean=self.data.mean, std=self.data.std, device=self.device)


def load_baseline(model: str, weights: str, data: Data, blocks: Granularity = "stage") -> tuple[nn.Module, Network]:
    """The uncompressed network with its trained weights, and what the search knows of it."""
    baseline = build_model(model, classes=data.classes, channels=data.channels)
    load_weights(baseline, weights, name=model)
    return baseline.eval(), Network.of(baseline, _image(data), blocks)


def _image(data: Data) -> tuple[int, int, int]:
    channels, height, width = data.val.images.shape[1:]
    return channels, height, width


def _run(spec: TrialSpec, device: str, out: Path | None) -> TrialResult:
    where = parse_device(device)
    data = load_data(spec.data)
    if data.fingerprint != spec.data_fingerprint:
        raise UsageError(f"data_fingerprint (={spec.data_fingerprint}) must be that of the data, {data.fingerprint}.")
    baseline, network = load_baseline(spec.model, spec.weights, data)
    sha256 = state_sha256(baseline)
    if sha256 != spec.weights_sha256:
        raise UsageError(f"weights_sha256 (={spec.weights_sha256}) must be that of {spec.weights}, {sha256}.")
    trial = Trial(spec, data=data, baseline=baseline, network=network, device=where)
    print(f"start: val_top1 {trial.zero_shot.top1:.4f}", file=sys.stderr)
    for epoch in trial.epochs():
        line = f"epoch {epoch.epoch}/{spec.epochs}: train_loss {epoch.train_loss:.4f}, val_top1 {epoch.val_top1:.4f}"
        print(line, file=sys.stderr)
    if out is not None:
        trial.save(out)
    return trial.result()


def main() -> int:
    """Run the trial of a spec file and print its result as JSON; 0 done, 1 failed, 2 wrong use."""
    parser = argparse.ArgumentParser(prog="python -m trainers.trial", description=_run.__doc__ or main.__doc__)
    parser.add_argument("spec", type=Path, help="JSON file of a TrialSpec; the column `spec` of a ledger row is one")
    parser.add_argument("--out", type=Path, help="write the packed model to this .safetensors file")
    parser.add_argument("--device", default=default_device(), help="cpu, cuda, cuda:1")
    arguments = parser.parse_args()
    try:
        spec = TrialSpec.from_json(json.loads(arguments.spec.read_text()))
        result = _run(spec, arguments.device, arguments.out)
    except (OSError, json.JSONDecodeError) as error:
        print(f"spec (={arguments.spec}) must be a readable JSON file; {error}.", file=sys.stderr)
        return 2
    except OvertoneError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    print(json.dumps(result.to_json(), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
