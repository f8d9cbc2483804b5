"""One trial: compress, measure, fine-tune, measure again, keep the packed model.

Runs by a plain function call or as `python -m trainers.trial spec.json`, without Ray and Optuna.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layers import Cost, OvertoneError, OvertoneWarning, UsageError, compress_model
from spaces import Network, build_model, load_weights, save_model, state_sha256
from spaces.blocks import Granularity
from spaces.models import check_outputs
from trainers.data import Data, load_data
from trainers.evaluation import Evaluation, evaluate, latency_ms
from trainers.runtime.device import default_device, keep_freed_memory, parse_device, training_precision
from trainers.spec import TrialSpec
from trainers.start.saliency import filter_saliency
from trainers.start.start import initialize
from trainers.training.checkpoint import read_checkpoint, write_checkpoint
from trainers.training.gradual_pruning import defer_pruning
from trainers.training.loop import Epoch, TrainingLoop

__all__ = ["Trial", "TrialResult", "image_card", "load_baseline", "run_trial"]


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What a finished trial measured."""

    spec_digest: str
    config_digest: str
    cost: Cost
    val_top1: float
    """Share of validation images, after the last epoch."""
    val_top5: float
    """The same for the five highest outputs."""
    val_loss: float
    init_score: float
    """Share of validation images, before fine-tuning."""
    latency_ms: float | None
    """Of one image."""
    latency_b64_ms: float | None
    """Of a batch of 64."""
    history: tuple[Epoch, ...]
    precision: str
    """What it was fine-tuned in, 'fp32' or 'bf16'."""
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
        self,
        spec: TrialSpec,
        *,
        data: Data,
        baseline: nn.Module,
        network: Network,
        device: torch.device | str,
        resume_from: Path | None = None,
    ) -> None:
        """Begin the trial, or take it up where `checkpoint` left it: it ends as if it had never stopped."""
        self.spec, self.data, self.network, self.device = spec, data, network, torch.device(device)
        self._spec_digest, self._config_digest = spec.digest(network), network.digest(spec.config)
        self._cost = network.cost(spec.config)
        state = None if resume_from is None else read_checkpoint(resume_from, spec.identity(network))
        begun = time.perf_counter()
        saliency = self._saliency(baseline)
        self.model = compress_model(baseline, network.forms(spec.config), saliency)
        if state is None:
            initialize(spec.init, self.model, baseline, data, seed=spec.seed, device=self.device)
            self._compress_s = time.perf_counter() - begun
            begun = time.perf_counter()
            self.initial = evaluate(self.model, data.val, mean=data.mean, std=data.std, device=self.device)
            self._evaluate_s = time.perf_counter() - begun
        else:
            self._compress_s, self._evaluate_s = state["compress_s"], state["evaluate_s"]
            self.initial = Evaluation(**state["zero_shot"])
        if spec.recipe.gradual_pruning and spec.epochs:
            defer_pruning(self.model, baseline, saliency)
        self.history = [] if state is None else [Epoch(**epoch) for epoch in state["history"]]
        teacher = baseline if spec.recipe.distillation else None
        self._finetuning = (
            TrainingLoop(
                self.model,
                data,
                spec.recipe,
                epochs=spec.epochs,
                seed=spec.seed,
                device=self.device,
                teacher=teacher,
            )
            if spec.epochs
            else None
        )
        if self._finetuning is not None and state is not None:
            self._finetuning.load_state_dict(state)

    def _saliency(self, baseline: nn.Module) -> dict[str, torch.Tensor]:
        """Of each convolution's filters, where it is not their magnitude that decides."""
        if self.spec.saliency == "magnitude" or not self.spec.has_templates(self.network):
            return {}
        return filter_saliency(self.spec.saliency, baseline, self.data, seed=self.spec.seed, device=self.device)

    def epochs(self) -> Iterator[Epoch]:
        """Fine-tune, an epoch at a time."""
        for epoch in self._finetuning or ():
            self.history.append(epoch)
            yield epoch

    def checkpoint(self, path: Path) -> None:
        """Write what the trial is after its last epoch, all or nothing; of use between two epochs."""
        if self._finetuning is None:
            return
        plain = {
            "zero_shot": asdict(self.initial),
            "history": [asdict(epoch) for epoch in self.history],
            "compress_s": self._compress_s,
            "evaluate_s": self._evaluate_s,
        }
        write_checkpoint(path, self.spec.identity(self.network), {**self._finetuning.state_dict(), **plain})

    @property
    def ended(self) -> bool:
        """Whether the last epoch has run."""
        return len(self.history) >= self.spec.epochs

    def result(self) -> TrialResult:
        """What was measured so far; latency is measured now, where the spec asks for it and the trial has ended."""
        begun = time.perf_counter()
        timed = self.spec.latency and self.ended
        single, batch = (self._latency(batch_size) if timed else None for batch_size in (1, 64))
        last = self.history[-1] if self.history else None
        return TrialResult(
            spec_digest=self._spec_digest,
            config_digest=self._config_digest,
            cost=self._cost,
            val_top1=self.initial.top1 if last is None else last.val_top1,
            val_top5=self.initial.top5 if last is None else last.val_top5,
            val_loss=self.initial.loss if last is None else last.val_loss,
            init_score=self.initial.top1,
            latency_ms=single,
            latency_b64_ms=batch,
            history=tuple(self.history),
            precision=training_precision(self.spec.recipe.precision, self.device),
            compress_s=self._compress_s,
            finetune_s=sum(epoch.seconds for epoch in self.history),
            evaluate_s=self._evaluate_s + time.perf_counter() - begun,
        )

    def save(self, path: str | Path) -> None:
        """Write the packed model, with what is needed to run it and where it comes from."""
        card = {"model": self.spec.model, **image_card(self.data), "spec": self.spec.to_card()}
        save_model(self.model, path, card=card)

    def _latency(self, batch_size: int) -> float:
        return latency_ms(self.model, self.data.val.image_shape, self.device, batch_size=batch_size)


def image_card(data: Data) -> dict[str, Any]:
    """What a packed model's card says of the images that it takes, plain JSON."""
    return {
        "classes": data.classes,
        "channels": data.channels,
        "image_size": list(data.val.image_shape[1:]),
        "mean": list(data.mean),
        "std": list(data.std),
    }


def load_baseline(
    model: str, weights: str, data: Data, granularity: Granularity = "stage"
) -> tuple[nn.Module, Network]:
    """The uncompressed network with its trained weights, and what the search knows of it."""
    baseline = build_model(model, classes=data.classes, channels=data.channels)
    load_weights(baseline, weights, name=model)
    network = Network.from_module(baseline, data.val.image_shape, granularity)
    check_outputs(model, baseline, data.val.image_shape, data.classes)
    return baseline.eval(), network


def run_trial(
    spec: TrialSpec,
    data: Data,
    device: torch.device | str,
    *,
    on_epoch: Callable[[Epoch], None],
    on_start: Callable[[Trial], None] = lambda trial: None,
    checkpoint: Path | None = None,
) -> Trial:
    """Run a trial from its spec alone to its end, or from where the checkpoint left it.

    Raises UsageError where the data or the weights are not those of the spec.
    """
    if data.fingerprint != spec.data_fingerprint:
        raise UsageError(f"data_fingerprint (={spec.data_fingerprint}) must be that of the data, {data.fingerprint}.")
    baseline, network = load_baseline(spec.model, spec.weights, data)
    sha256 = state_sha256(baseline)
    if sha256 != spec.weights_sha256:
        raise UsageError(f"weights_sha256 (={spec.weights_sha256}) must be that of {spec.weights}, {sha256}.")
    resume_from = checkpoint if checkpoint is not None and checkpoint.exists() else None
    trial = Trial(spec, data=data, baseline=baseline, network=network, device=device, resume_from=resume_from)
    on_start(trial)
    for epoch in trial.epochs():
        if checkpoint is not None:
            trial.checkpoint(checkpoint)
        on_epoch(epoch)
    return trial


def _run(spec: TrialSpec, device: str, out: Path | None, checkpoint: Path | None) -> TrialResult:
    def start(trial: Trial) -> None:
        after = f", going on after epoch {len(trial.history)}" if trial.history else ""
        print(f"start: val_top1 {trial.initial.top1:.4f}{after}", file=sys.stderr)

    def tell(epoch: Epoch) -> None:
        line = f"epoch {epoch.epoch}/{spec.epochs}: train_loss {epoch.train_loss:.4f}, val_top1 {epoch.val_top1:.4f}"
        print(line, file=sys.stderr)

    where = parse_device(device)
    trial = run_trial(spec, load_data(spec.data), where, on_epoch=tell, on_start=start, checkpoint=checkpoint)
    if out is not None:
        trial.save(out)
    return trial.result()


def main() -> int:
    """Run the trial of a spec file and print its result as JSON; 0 done, 1 failed, 2 wrong use."""
    parser = argparse.ArgumentParser(prog="python -m trainers.trial", description=_run.__doc__ or main.__doc__)
    parser.add_argument("spec", type=Path, help="JSON file of a TrialSpec; the column `spec` of a ledger row is one")
    parser.add_argument("--out", type=Path, help="write the packed model to this .safetensors file")
    parser.add_argument("--checkpoint", type=Path, help="file to keep the trial in after each epoch, and go on from")
    parser.add_argument("--device", default=default_device(), help="cpu, cuda, cuda:1")
    arguments = parser.parse_args()
    keep_freed_memory()
    warnings.simplefilter("always", OvertoneWarning)
    warnings.showwarning = lambda message, *_, **__: print(message, file=sys.stderr)
    try:
        given = json.loads(arguments.spec.read_text())
    except (OSError, ValueError, RecursionError) as error:
        print(f"spec (={arguments.spec}) must be a readable JSON file; {error}.", file=sys.stderr)
        return 2
    try:
        result = _run(TrialSpec.from_json(given), arguments.device, arguments.out, arguments.checkpoint)
    except OvertoneError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        print(f"{error.filename or 'A file'} cannot be used: {error.strerror or error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from the checkpoint, where one is named.", file=sys.stderr)
        return 1
    print(json.dumps(result.to_json(), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
