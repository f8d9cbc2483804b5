"""What a trial will take, before one is run: seconds from a few timed steps, memory by counting tensors.

Both are measured on a copy of the uncompressed network. In training a compressed network costs about the same: its
filters are built anew from few weights in each step, but its activations, convolutions and gradients are as large. It
costs more in networks so small that building filters takes most of the time. Calibration is not included.

The count has the tensors that live from one layer to another. It does not have the memory of Python, PyTorch and CUDA
(some 0.5 GB), or what a single kernel needs while it runs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from layers.timing import median_ms
from trainers.data.augment import augment, normalize
from trainers.evaluation import default_eval_batch_size
from trainers.runtime.cuda_graphs import ForwardFn, graph_bytes, maybe_cuda_graph
from trainers.runtime.determinism import deterministic_cudnn, eval_mode, seeded_dropout
from trainers.runtime.device import training_precision
from trainers.runtime.memory import peak_bytes, saved_bytes, storage_bytes
from trainers.runtime.threads import num_threads, threads_for_step
from trainers.training.distillation import Teacher
from trainers.training.loss import Loss
from trainers.training.optimizer import make_optimizer
from trainers.training.recipe import TrainingRecipe

__all__ = ["TrialEstimate", "estimate_trial"]

_FIRST_COUNT = 2
_GROWTH = 4
_RUNS = 15
_TRAIN_S = 0.75
"""About how long steps of training are timed."""
_VALIDATE_S = 1.0
"""About how long steps of validation are timed."""


@dataclass(frozen=True, kw_only=True)
class TrialEstimate:
    """What a trial will take on a device."""

    device: str
    """Name of the GPU, or `cpu`."""
    threads: int
    """CPU threads of a training step: fewer than PyTorch has if the network is small."""
    training_s: float
    """All epochs over the training images."""
    validation_s: float
    """Before the first epoch and after each."""
    weights_bytes: int
    """Parameters and buffers, with those of the teacher and of the averaged weights if the recipe has them."""
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    """Tensors saved for the backward pass of one batch (or of the piece that is computed at once); twice if the pass is
    recorded as a CUDA graph, which shares its memory with no other batch."""
    validation_bytes: int
    """Peak of one forward pass of a validation batch, which saves nothing."""
    images_bytes: int
    """Labels, and training and validation images, 8 bits a channel, unless they are streamed."""

    @property
    def seconds(self) -> float:
        """The whole trial, without compression and initialization."""
        return self.training_s + self.validation_s

    @property
    def memory_bytes(self) -> int:
        """All parts. Activations and validation take turns, but an allocator rarely gives one the other's memory."""
        learned = self.weights_bytes + self.gradients_bytes + self.optimizer_bytes
        return learned + self.activations_bytes + self.validation_bytes + self.images_bytes

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data: the sums, then the parts."""
        return {"seconds": self.seconds, "memory_bytes": self.memory_bytes, **asdict(self)}


def estimate_trial(
    model: nn.Module,
    shape: tuple[int, int, int],
    *,
    recipe: TrainingRecipe,
    epochs: int,
    train_images: int,
    val_images: int,
    device: torch.device | str,
    streamed: bool = False,
) -> TrialEstimate:
    """Time a few steps of the uncompressed network on random images (C, H, W) and count the bytes that it holds.

    With distillation the teacher runs in every step, as in the first trial of a study; its outputs are cached for the
    other trials, which are faster. Takes two or three seconds for CIFAR's networks, under twenty for most networks of
    224 pixels. The model is not changed. With `streamed` no images stay on the device, and decoding them takes time
    that is not counted.
    """
    device = torch.device(device)
    generator = torch.Generator(device).manual_seed(0)
    with deterministic_cudnn(), seeded_dropout(generator):
        probe = _Probe(model, shape, recipe, generator)
        batch, val_batch = min(recipe.batch_size, train_images), min(default_eval_batch_size(device), val_images)
        activations = _extrapolate(probe.activations, -(-batch // recipe.grad_accum_steps))
        validation = _extrapolate(probe.validation_peak, val_batch)
        piece = recipe.batch_size // recipe.grad_accum_steps
        threads = threads_for_step(probe.model, shape, piece, device, streamed=streamed)
        with num_threads(threads):
            train_s = _seconds_an_image(probe.training, batch, device, _TRAIN_S)
        validate_s = _seconds_an_image(probe.validation, val_batch, device, _VALIDATE_S)
    moments = [moment for state in probe.optimizer.state.values() for moment in state.values()]
    image_bytes = torch.int64.itemsize + (0 if streamed else shape[0] * shape[1] * shape[2])
    return TrialEstimate(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        threads=threads,
        training_s=train_s * train_images * epochs,
        validation_s=validate_s * val_images * (epochs + 1),
        weights_bytes=storage_bytes(_state(probe.model)) * (1 + bool(recipe.distillation) + bool(recipe.ema_decay)),
        gradients_bytes=storage_bytes(weight.grad for weight in probe.model.parameters() if weight.grad is not None),
        optimizer_bytes=storage_bytes(moment for moment in moments if isinstance(moment, torch.Tensor)),
        activations_bytes=activations + (graph_bytes(activations, device) if _may_record(recipe) else 0),
        validation_bytes=validation,
        images_bytes=(train_images + val_images) * image_bytes,
    )


class _Probe:
    """A copy of a network on its device with what trains it; a learning rate of 0 keeps its outputs finite."""

    def __init__(
        self, model: nn.Module, shape: tuple[int, int, int], recipe: TrainingRecipe, generator: torch.Generator
    ) -> None:
        self.device = generator.device
        self.generator = generator
        self.shape = shape
        self.recipe = recipe
        self.teacher = model
        self.model = copy.deepcopy(model).to(self.device).to(memory_format=torch.channels_last).train()
        self.optimizer = make_optimizer(self.model, recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        self.bf16 = training_precision(recipe.precision, self.device) == "bf16"

    def training(self, count: int) -> Callable[[], None]:
        """Return a step over `count` images, as they come from the set."""
        images = self._images(count)
        loss = self._loss(maybe_cuda_graph(self.model, self.device) if _may_record(self.recipe) else self.model)

        def step() -> None:
            self.optimizer.zero_grad()
            loss(augment(images, "crop-flip", self.generator)).backward()
            self.optimizer.step()

        return step

    def validation(self, count: int) -> Callable[[], None]:
        """Return a forward pass in evaluation mode over `count` images."""
        images = self._images(count)

        def step() -> None:
            with eval_mode(self.model):
                self.model(self._normalized(images))

        return step

    def activations(self, count: int) -> int:
        """Return the bytes saved for the backward pass of `count` images."""
        images, loss = self._images(count), self._loss(self.model)
        return saved_bytes(lambda: loss(images), besides=_state(self.model))

    def validation_peak(self, count: int) -> int:
        """Return the most bytes that a forward pass in evaluation mode over `count` images holds at a time."""
        return peak_bytes(self.validation(count))

    def _loss(self, network: ForwardFn) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the loss of a batch, always of one size: the teacher's passes, too, are recorded for one."""
        loss = Loss(self.recipe, Teacher(self.teacher, self.device) if self.recipe.distillation else None)

        def batch_loss(images: torch.Tensor) -> torch.Tensor:
            images = self._normalized(images)
            labels = torch.zeros(len(images), dtype=torch.int64, device=self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                return loss(network(images).float(), images, labels)

        return batch_loss

    def _images(self, count: int) -> torch.Tensor:
        shape = (count, *self.shape)
        return torch.randint(256, shape, generator=self.generator, device=self.device, dtype=torch.uint8)

    def _normalized(self, images: torch.Tensor) -> torch.Tensor:
        return normalize(images, (0.5,) * self.shape[0], (0.25,) * self.shape[0])


def _seconds_an_image(
    make: Callable[[int], Callable[[], None]], full: int, device: torch.device, budget_s: float
) -> float:
    """Return the seconds an image of a step over `full` images, or over as many as the budget has time for.

    The full batch is best: larger batches do not fit in the caches, and cost up to twice as much an image on a CPU.
    """
    count = min(_FIRST_COUNT, full)
    make(count)()  # the first step sets up what the others use
    while True:
        step = make(count)
        once_ms = median_ms(step, device, runs=1, warm_up=0)
        if count == full or _GROWTH * once_ms > 1000 * budget_s:
            break
        count = min(_GROWTH * count, full)
    runs = min(_RUNS, int(1000 * budget_s / once_ms)) if once_ms else _RUNS
    return (median_ms(step, device, runs=runs, warm_up=0) if runs > 1 else once_ms) / 1000 / count


def _may_record(recipe: TrainingRecipe) -> bool:
    """Return whether training may record its passes: gradients of a batch's pieces add up, those of graphs cannot."""
    return recipe.grad_accum_steps == 1


def _extrapolate(nbytes: Callable[[int], int], count: int) -> int:
    """Extrapolate bytes linearly to `count` images from measurements at two and three."""
    two = nbytes(2)
    three = nbytes(3)
    return two + (count - 2) * (three - two)


def _state(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
