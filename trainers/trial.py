"""One trial: compress, measure, fine-tune, measure again, write the packed model.

It runs by a plain function call or as `python -m trainers spec.json`, without Ray and Optuna.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layers import Cost, UsageError, compress_model
from spaces import Network, build_model, load_weights, save_model, state_sha256
from spaces.blocks import Granularity
from spaces.models import check_outputs, copy_module
from spaces.portable.skeleton import Skeleton
from trainers.data import Data
from trainers.evaluation import Evaluation, evaluate
from trainers.runtime.device import training_precision
from trainers.runtime.latency import model_latency, trace_skeleton
from trainers.runtime.place import LATENCY, Latency
from trainers.score import SCORE_NAME
from trainers.spec import TrialSpec
from trainers.start.activations import plan_activations
from trainers.start.saliency import filter_saliency
from trainers.start.start import initialize
from trainers.training.checkpoint import read_checkpoint, write_checkpoint
from trainers.training.gradual_pruning import defer_pruning
from trainers.training.loop import Epoch, TrainingLoop

__all__ = ["Trial", "TrialResult", "image_card", "load_baseline", "run_trial"]


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What a trial measured."""

    spec_digest: str
    config_digest: str
    cost: Cost
    score: float
    """Metric by which trials are compared, after the last epoch."""
    init_score: float
    """The same before fine-tuning."""
    score_name: str
    """Name of the metric that is the score."""
    metrics: dict[str, float]
    """Metrics of the validation split by name, after the last epoch."""
    latency_ms: float | None
    """Latency of one image."""
    latency_b64_ms: float | None
    """Latency of a batch of 64."""
    latency_runtime: str | None
    """Where the two were taken, as `trainers.runtime.latency.Place` has it; None without them."""
    latency_threads: int | None
    latency_device: str | None
    history: tuple[Epoch, ...]
    precision: str
    """Precision of fine-tuning, 'fp32' or 'bf16'."""
    compress_s: float
    """Compression and initialization, calibration included."""
    finetune_s: float
    evaluate_s: float
    """Validation before fine-tuning, and latency; later validation counts as fine-tuning."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {**asdict(self), "cost": {**asdict(self.cost), "flops": self.cost.flops}}


class Trial:
    """A running trial: exhaust `epochs()`, then call `result()` and `save()`.

    `baseline` is the uncompressed network with its trained weights; it is not changed. With `resume_from` the trial
    continues from that checkpoint, and ends as if it had never stopped. `skeleton` is what writes the model's file
    where that is timed, if it is at hand. `initial` is the evaluation before fine-tuning, `history` the epochs that
    have run.
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
        skeleton: Skeleton | None = None,
    ) -> None:
        self.spec = spec
        self._baseline = baseline
        self._skeleton = skeleton
        self.data = data
        self.network = network
        self.device = torch.device(device)
        self._spec_digest = spec.digest(network)
        self._config_digest = network.digest(spec.config)
        self._cost = network.cost(spec.config)
        state = None if resume_from is None else read_checkpoint(resume_from, spec.identity(network))
        started = time.perf_counter()
        saliency = self._saliency(baseline)
        self.model = compress_model(baseline, network.forms(spec.config), saliency)
        if state is None:
            initialize(spec.init, self.model, baseline, data, seed=spec.seed, device=self.device)
            self._compress_s = time.perf_counter() - started
            started = time.perf_counter()
            self.initial = evaluate(self.model, data.val, data.normalize, device=self.device)
            self._evaluate_s = time.perf_counter() - started
        else:
            self._compress_s = state["compress_s"]
            self._evaluate_s = state["evaluate_s"]
            self.initial = Evaluation(**state["initial"])
            plan_activations(self.model, data.normalize(data.val.take(torch.arange(1)).to(self.device)))
        if spec.recipe.gradual_pruning and spec.epochs:
            defer_pruning(self.model, baseline, saliency)
        self.history = [] if state is None else [Epoch(**epoch) for epoch in state["history"]]
        teacher = baseline if spec.recipe.distillation else None
        self._loop: TrainingLoop | None = None
        if spec.epochs:
            self._loop = TrainingLoop(
                self.model,
                data,
                spec.recipe,
                epochs=spec.epochs,
                seed=spec.seed,
                device=self.device,
                teacher=teacher,
            )
            if state is not None:
                self._loop.load_state_dict(state)

    def _saliency(self, baseline: nn.Module) -> dict[str, torch.Tensor]:
        """Return the saliency of each convolution's filters, nothing if their magnitude decides."""
        if self.spec.saliency == "magnitude" or not self.spec.has_templates(self.network):
            return {}
        return filter_saliency(self.spec.saliency, baseline, self.data, seed=self.spec.seed, device=self.device)

    def epochs(self) -> Iterator[Epoch]:
        """Fine-tune, and yield each epoch as it ends."""
        for epoch in self._loop or ():
            self.history.append(epoch)
            yield epoch

    def checkpoint(self, path: Path) -> None:
        """Write the trial's state after its last epoch, all or nothing; call it between two epochs."""
        if self._loop is None:
            return
        plain = {
            "initial": asdict(self.initial),
            "history": [asdict(epoch) for epoch in self.history],
            "compress_s": self._compress_s,
            "evaluate_s": self._evaluate_s,
        }
        write_checkpoint(path, self.spec.identity(self.network), {**self._loop.state_dict(), **plain})

    @property
    def ended(self) -> bool:
        """Whether the last epoch has run."""
        return len(self.history) >= self.spec.epochs

    def result(self) -> TrialResult:
        """Return the measurements so far, and measure latency if the spec asks for it and the trial has ended."""
        started = time.perf_counter()
        latency = self.latency() if self.spec.latency and self.ended else None
        last = self.history[-1] if self.history else None
        return TrialResult(
            spec_digest=self._spec_digest,
            config_digest=self._config_digest,
            cost=self._cost,
            score=self.initial.top1 if last is None else last.score,
            init_score=self.initial.top1,
            score_name=SCORE_NAME,
            metrics=self.initial.metrics("val") if last is None else last.metrics,
            **(dict.fromkeys(LATENCY) if latency is None else asdict(latency)),
            history=tuple(self.history),
            precision=training_precision(self.spec.recipe.precision, self.device),
            compress_s=self._compress_s,
            finetune_s=sum(epoch.seconds for epoch in self.history),
            evaluate_s=self._evaluate_s + time.perf_counter() - started,
        )

    def save(self, path: str | Path) -> None:
        """Write the packed model, with a card that says how to run it and where it comes from."""
        card = {"model": self.spec.model, **image_card(self.data), "spec": self.spec.to_card()}
        if self.network.uncounted:
            card["uncounted"] = list(self.network.uncounted)
        save_model(self.model, path, card=card)

    def latency(self) -> Latency:
        """Return the model's latency, where the spec wants it taken."""
        return model_latency(
            self.model,
            self.data.val.image_shape,
            self.device,
            runtime=self.spec.runtime,
            threads=self.spec.latency_threads,
            skeleton=lambda: self._skeleton or trace_skeleton(self._baseline, self.data.val.image_shape),
        )


def image_card(data: Data) -> dict[str, Any]:
    """Return what a packed model's card says about the images that the model takes, plain JSON."""
    return {
        "classes": data.classes,
        "channels": data.channels,
        "image_size": list(data.val.image_shape[1:]),
        "mean": list(data.mean),
        "std": list(data.std),
        **({"pixels": "float32"} if data.train.dtype == torch.float32 else {}),
    }


def load_baseline(
    model: str, weights: str, data: Data, granularity: Granularity = "stage", *, module: nn.Module | None = None
) -> tuple[nn.Module, Network]:
    """Return the uncompressed network with its trained weights, and its description for the search.

    A network that was given as an object is a copy of `module`, with the module's own weights if `weights` is its name.
    """
    if module is None:
        baseline = build_model(model, classes=data.classes, channels=data.channels)
    else:
        baseline = copy_module(module)
    if module is None or weights != model:
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
    module: nn.Module | None = None,
    weights: str | None = None,
) -> Trial:
    """Run a trial from its spec to its end, or continue it from the checkpoint file if that exists.

    `module` is the uncompressed network if it was given as an object, `weights` where its weights are if they moved.
    The checkpoint is written after each epoch. Raises UsageError if the data or the weights are not those of the spec.
    """
    if data.fingerprint != spec.data_fingerprint:
        raise UsageError(f"data_fingerprint (={spec.data_fingerprint}) must be that of the data, {data.fingerprint}")
    baseline, network = load_baseline(spec.model, weights or spec.weights, data, module=module)
    sha256 = state_sha256(baseline)
    if sha256 != spec.weights_sha256:
        raise UsageError(f"weights_sha256 (={spec.weights_sha256}) must be that of {weights or spec.weights}, {sha256}")
    resume_from = checkpoint if checkpoint is not None and checkpoint.exists() else None
    trial = Trial(spec, data=data, baseline=baseline, network=network, device=device, resume_from=resume_from)
    on_start(trial)
    for epoch in trial.epochs():
        if checkpoint is not None:
            trial.checkpoint(checkpoint)
        on_epoch(epoch)
    return trial
