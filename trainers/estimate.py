"""What a trial will take, before one is run: seconds from a few steps that are timed, memory by counting tensors.

Both are those of the uncompressed network, on a copy of it. In training a compressed network costs about the same: its
filters are built anew from few weights in each step, but its activations, convolutions and gradients are as large. In
networks so small that building filters is what takes time, it costs more; the calibrated start comes on top of either.

Counted are the tensors that live from one layer to another. What Python, PyTorch and CUDA take by themselves (some
0.5 GB), and what a single kernel needs while it runs, are not.
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
from trainers.evaluation import default_eval_batch_size, eval_mode
from trainers.runtime.cuda_graphs import ForwardFn, graph_bytes, maybe_cuda_graph
from trainers.runtime.determinism import deterministic_cudnn, seeded_dropout
from trainers.runtime.device import training_precision
from trainers.runtime.memory import peak_bytes, saved_bytes, storage_bytes
from trainers.runtime.threads import num_threads, threads_for_step
from trainers.training.distillation import Teacher
from trainers.training.loss import Loss
from trainers.training.optimizer import make_optimizer
from trainers.training.recipe import TrainingRecipe

__all__ = ["TrialEstimate", "estimate_trial"]

_FIRST, _GROWTH = 2, 4
_RUNS = 15
_TRAIN_S, _VALIDATE_S = 0.75, 1.0
"""About how long the steps of training and of validation are timed for."""


@dataclass(frozen=True, kw_only=True)
class TrialEstimate:
    """What a trial will take on a device."""

    device: str
    """Name of the GPU, or `cpu`."""
    threads: int
    """CPU threads of a training step: fewer than PyTorch has where the network is small."""
    training_s: float
    """All epochs over the training images."""
    validation_s: float
    """Before the first epoch and after each."""
    weights_bytes: int
    """Parameters and buffers; with those of the teacher and of the average where the schedule has them."""
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    """What is saved for the backward pass of one batch (or of the piece of it that is computed at once); twice where
    that is recorded as a CUDA graph, which shares its memory with no other batch."""
    validation_bytes: int
    """The most that one forward pass of a validation batch, which saves nothing, holds at a time."""
    images_bytes: int
    """Labels, and training and validation images, 8 bits a channel, where these are not streamed."""

    @property
    def seconds(self) -> float:
        """The whole trial, without compression and its start."""
        return self.training_s + self.validation_s

    @property
    def memory_bytes(self) -> int:
        """All parts. Activations and validation take turns, but an allocator rarely gives one the other's memory."""
        learned = self.weights_bytes + self.gradients_bytes + self.optimizer_bytes
        return learned + self.activations_bytes + self.validation_bytes + self.images_bytes

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data: the sums, then the parts."""
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
    """Time a few steps of the uncompressed network on random images (C, H, W) and count what it holds.

    With distillation the teacher is asked in every step, as in the first trial of a study; what it said is kept for
    the others, which are quicker. Takes two or three seconds for CIFAR's networks, under twenty for most of 224 pixels.
    The model is left as it was.
    With `streamed` no images stay on the device; decoding them then takes time that is not counted.
    """
    device = torch.device(device)
    generator = torch.Generator(device).manual_seed(0)
    with deterministic_cudnn(), seeded_dropout(generator):
        probe = _Probe(model, shape, recipe, generator)
        batch, val_batch = min(recipe.batch_size, train_images), min(default_eval_batch_size(device), val_images)
        activations = _drawn_out(probe.activations, -(-batch // recipe.grad_accum_steps))
        validation = _drawn_out(probe.validation_peak, val_batch)
        few = threads_for_step(probe.model, shape, recipe, device, streamed=streamed)
        with num_threads(few):
            train_s = _seconds_an_image(probe.training, batch, device, _TRAIN_S)
        validate_s = _seconds_an_image(probe.validation, val_batch, device, _VALIDATE_S)
    states = [state for kept in probe.optimizer.state.values() for state in kept.values()]
    image_bytes = torch.int64.itemsize + (0 if streamed else shape[0] * shape[1] * shape[2])
    return TrialEstimate(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        threads=few,
        training_s=train_s * train_images * epochs,
        validation_s=validate_s * val_images * (epochs + 1),
        weights_bytes=storage_bytes(_state(probe.model)) * (1 + bool(recipe.distillation) + bool(recipe.ema_decay)),
        gradients_bytes=storage_bytes(weight.grad for weight in probe.model.parameters() if weight.grad is not None),
        optimizer_bytes=storage_bytes(state for state in states if isinstance(state, torch.Tensor)),
        activations_bytes=activations + (graph_bytes(activations, device) if _recorded(recipe) else 0),
        validation_bytes=validation,
        images_bytes=(train_images + val_images) * image_bytes,
    )


class _Probe:
    """A copy of a network on its device with all that trains it; a learning rate of 0 keeps its outputs finite."""

    def __init__(
        self, model: nn.Module, shape: tuple[int, int, int], recipe: TrainingRecipe, generator: torch.Generator
    ) -> None:
        self.device, self.generator, self.shape = generator.device, generator, shape
        self.recipe, self.teacher = recipe, model
        self.model = copy.deepcopy(model).to(self.device).to(memory_format=torch.channels_last).train()
        self.optimizer = make_optimizer(self.model, recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        self.bf16 = training_precision(recipe.precision, self.device) == "bf16"

    def training(self, count: int) -> Callable[[], None]:
        """A step over so many images, as they come from the set."""
        images = self._images(count)
        loss = self._loss(maybe_cuda_graph(self.model, self.device) if _recorded(self.recipe) else self.model)

        def step() -> None:
            self.optimizer.zero_grad()
            loss(augment(images, "crop-flip", self.generator)).backward()
            self.optimizer.step()

        return step

    def validation(self, count: int) -> Callable[[], None]:
        """A forward pass in evaluation mode over so many images."""
        images = self._images(count)

        def step() -> None:
            with eval_mode(self.model):
                self.model(self._normalized(images))

        return step

    def activations(self, count: int) -> int:
        """Bytes saved for the backward pass of so many images."""
        images, loss = self._images(count), self._loss(self.model)
        return saved_bytes(lambda: loss(images), besides=_state(self.model))

    def validation_peak(self, count: int) -> int:
        """The most bytes that a forward pass in evaluation mode over so many images holds."""
        return peak_bytes(self.validation(count))

    def _loss(self, network: ForwardFn) -> Callable[[torch.Tensor], torch.Tensor]:
        """Of a batch of one size: the teacher's passes, too, are recorded for one."""
        loss = Loss(self.recipe, Teacher(self.teacher, self.device) if self.recipe.distillation else None)

        def of(images: torch.Tensor) -> torch.Tensor:
            images, labels = self._normalized(images), torch.zeros(len(images), dtype=torch.int64, device=self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                return loss(network(images).float(), images, labels)

        return of

    def _images(self, count: int) -> torch.Tensor:
        shape = (count, *self.shape)
        return torch.randint(256, shape, generator=self.generator, device=self.device, dtype=torch.uint8)

    def _normalized(self, images: torch.Tensor) -> torch.Tensor:
        return normalize(images, (0.5,) * self.shape[0], (0.25,) * self.shape[0])


def _seconds_an_image(
    make: Callable[[int], Callable[[], None]], full: int, device: torch.device, budget_s: float
) -> float:
    """Seconds of a step over `full` images, or over as many as the budget has room for, divided by them.

    The full batch is best: larger ones leave the caches, and cost up to twice as much an image on a CPU.
    """
    count = min(_FIRST, full)
    make(count)()  # the first step sets up what the others find
    while True:
        step = make(count)
        once_ms = median_ms(step, device, runs=1, warm_up=0)
        if count == full or _GROWTH * once_ms > 1000 * budget_s:
            break
        count = min(_GROWTH * count, full)
    runs = min(_RUNS, int(1000 * budget_s / once_ms)) if once_ms else _RUNS
    return (median_ms(step, device, runs=runs, warm_up=0) if runs > 1 else once_ms) / 1000 / count


def _recorded(recipe: TrainingRecipe) -> bool:
    """Whether fine-tuning may record its passes: gradients of a batch's pieces add up, and those of graphs cannot."""
    return recipe.grad_accum_steps == 1


def _drawn_out(nbytes: Callable[[int], int], count: int) -> int:
    """What `count` images take, from what two and three of them do: a part of each image's own, and one of all."""
    fewer, more = nbytes(2), nbytes(3)
    return fewer + (count - 2) * (more - fewer)


def _state(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
