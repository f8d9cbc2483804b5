"""Effects: a network's loss and score where one block alone is compressed and initialized as a trial has it.

They are measured on training images, so the validation split stays unseen, and on none that a trial calibrates on.
A difference of losses is mostly noise where the effect is small: some images gain what others lose. The divergence of
the outputs from the uncompressed network's is the same in expectation, if that network's probabilities are right, and
has no such noise: a few hundred images tell small effects apart (`benchmarks/effects.py`).
"""

from __future__ import annotations

import copy
import time

import torch
import torch.nn.functional as F
from torch import nn

from layers import OvertoneError, compress_model
from spaces import BlockConfig, Network, NetworkConfig
from spaces.effects import Effect, Effects
from trainers.data import Data
from trainers.evaluation import default_eval_batch_size, evaluation
from trainers.runtime.determinism import epoch_generator, eval_mode
from trainers.start.saliency import filter_saliency
from trainers.start.start import CALIBRATION_IMAGES, initialize

__all__ = ["EffectMeter", "affordable_effects", "effect_passes"]

_IMAGES = 256
_CALIBRATION = 128
_CALIBRATION_PIXELS = 1 << 14
"""Pixels of the calibration images together, at least: small ones tell little each."""
_CALIBRATION_PASSES, _FIXED_PASSES = 6, 512
"""What calibration costs an image, and what a measurement costs besides, in forward passes of one image."""


def affordable_effects(data: Data, *, trials: float, epochs: int) -> int:
    """Return how many effects can be measured for the cost of so many trials, validation included.

    Counted in forward passes of the uncompressed network, of which a step of training takes three an image, as
    `trainers.estimate` times them: the same on every machine, so that equal studies know equal effects.
    """
    trial = 3 * len(data.train) * epochs + len(data.val) * (epochs + 1)
    return int(trials * trial / effect_passes(data))


def effect_passes(data: Data) -> int:
    """Return what measuring one effect costs, in forward passes of one image."""
    return _IMAGES + _CALIBRATION_PASSES * _calibration_count(data) + _FIXED_PASSES


def _calibration_count(data: Data) -> int:
    height, width = data.train.image_shape[1:]
    return min(CALIBRATION_IMAGES, max(_CALIBRATION, _CALIBRATION_PIXELS // (height * width)), len(data.train) // 2)


class EffectMeter:
    """Measures effects of one network on one device; what all of them share is computed once."""

    def __init__(
        self,
        data: Data,
        baseline: nn.Module,
        network: Network,
        *,
        init: str = "calibrated",
        saliency: str = "magnitude",
        minimum_templates: int = NetworkConfig.minimum_templates,
        seed: int = 0,
        device: torch.device | str = "cpu",
        images: int = _IMAGES,
        calibration_images: int | None = None,
    ) -> None:
        """Draw the images by the seed and measure the uncompressed network.

        At most half of the training images are calibrated on; how many follows from their size unless it is given.
        Takes the trained `baseline` and its description.
        """
        started = time.perf_counter()
        self._data, self._baseline, self._network = data, baseline, network
        self._init, self._seed = init, seed
        self._whole = network.cost(NetworkConfig())
        self._device = torch.device(device)
        order = torch.randperm(len(data.train), generator=epoch_generator(seed, 0, torch.device("cpu")))
        first = min(CALIBRATION_IMAGES, len(order) // 2)
        calibrated = order[: min(calibration_images or _calibration_count(data), first)]
        held_out = order[first : first + images]
        self._calibration = data.normalize(data.train.take(calibrated).to(self._device))
        self._images = data.normalize(data.train.take(held_out).to(self._device))
        self._labels = data.train.labels[held_out].to(self._device)
        self._saliency = {}
        if saliency != "magnitude":
            self._saliency = filter_saliency(saliency, baseline, data, seed=seed, device=device)
        self._logits = self._measured(copy.deepcopy(baseline))
        loss, score = self._loss_and_score(self._logits)
        self.reference = Effects(
            loss=loss,
            score=score,
            images=len(held_out),
            calibration_images=len(calibrated),
            seed=seed,
            minimum_templates=minimum_templates,
            reference_s=time.perf_counter() - started,
        )
        """The library without an effect: what the uncompressed network measures, and on what."""

    def measure(self, block: str, config: BlockConfig) -> Effect:
        """Return the effect of compressing this block alone.

        Raises `UsageError` for a config that the block cannot take, and `OvertoneError` if the network's outputs are
        not finite then.
        """
        started = time.perf_counter()
        minimum = self.reference.minimum_templates
        canonical = self._network.canonical(NetworkConfig(blocks={block: config}, minimum_templates=minimum))
        config = canonical.blocks.get(block, BlockConfig())
        model = compress_model(self._baseline, self._network.block_forms(block, config, minimum), self._saliency)
        initialize(
            self._init,
            model,
            self._baseline,
            self._data,
            seed=self._seed,
            device=self._device,
            calibration=self._calibration,
        )
        logits = self._measured(model)
        divergences = _divergences(self._logits, logits)
        loss, score = self._loss_and_score(logits)
        cost = self._network.cost(canonical)
        return Effect(
            block=block,
            config=config,
            loss=loss,
            divergence=float(divergences.mean()),
            divergence_error=float(divergences.std(correction=min(1, len(divergences) - 1)) / len(divergences) ** 0.5),
            score=score,
            seconds=time.perf_counter() - started,
            bytes_saved=self._whole.size_bytes - cost.size_bytes,
            flops_saved=self._whole.flops - cost.flops,
        )

    def _measured(self, model: nn.Module) -> torch.Tensor:
        """Return the outputs (n, classes) for the held-out images, float64."""
        with eval_mode(model.to(self._device)):
            batches = self._images.split(default_eval_batch_size(self._device))
            logits = torch.cat([model(batch) for batch in batches]).double()
        if not logits.isfinite().all():
            raise OvertoneError("the network's outputs are infinite or not numbers")
        return logits

    def _loss_and_score(self, logits: torch.Tensor) -> tuple[float, float]:
        measured = evaluation(logits, self._labels)
        return measured.loss, measured.top1


def _divergences(reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return the Kullback-Leibler divergence (n,) of each image's probabilities from those of the reference."""
    target, given = F.log_softmax(reference, 1), F.log_softmax(logits, 1)
    return F.kl_div(given, target, reduction="none", log_target=True).sum(1).clamp_min(0.0)
