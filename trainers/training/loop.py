"""Train a network on data that live on its device, one epoch at a time.

Images stay uint8 until their batch is cropped, mirrored and normalized on the device; the network runs channels last.
Every random number comes from a generator of (seed, epoch), so the same call on the same machine and with as many
threads gives the same weights bit for bit, and what runs between two epochs cannot change the next one. So a training
that stopped goes on from the state it had after any epoch as if it had not.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from layers import compressed_layers
from layers.errors import OvertoneError, UsageError
from trainers.data import Data
from trainers.data.augment import augment, normalize
from trainers.evaluation import Evaluation, evaluate
from trainers.runtime.cache import cache_key
from trainers.runtime.cuda_graphs import maybe_cuda_graph
from trainers.runtime.determinism import deterministic_cudnn, epoch_generator, seeded_dropout
from trainers.runtime.device import training_precision
from trainers.runtime.threads import num_threads, threads_for_step
from trainers.training.distillation import Teacher
from trainers.training.gradual_pruning import advance_pruning, deferred_params
from trainers.training.loss import Loss, make_mixer
from trainers.training.optimizer import ModelEma, make_optimizer, remove_params
from trainers.training.recipe import TrainingRecipe
from trainers.training.stochastic_depth import stochastic_depth

__all__ = ["Epoch", "TrainingLoop", "TrainingRecipe"]

_NO_MEMORY = "DefaultCPUAllocator: "
"""What a CPU's allocator says first; it has no error of its own."""
_CHECK_EVERY = 50  # steps between looks at the losses: a look makes a GPU wait
_MOST_OUTPUTS = 2**26
"""Of a teacher in one training; more are not kept."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch came to."""

    epoch: int
    """From 1."""
    train_loss: float
    """Mean over the images trained on, as they came: augmented, smoothed, the network still changing."""
    val_top1: float
    """Share of validation images, 0 to 1."""
    val_top5: float
    """The same for the five highest outputs."""
    val_loss: float
    """Mean cross-entropy in nats."""
    lr: float
    """Learning rate of the last step."""
    seconds: float
    """Wall time of training and validation."""


class TrainingLoop:
    """The training of one model, in place: iterating runs and yields the epochs that are left.

    Whenever an epoch is yielded the model is at its end, in training mode, and `state_dict` is what a new TrainingLoop
    of the same arguments needs to go on from there. A schedule with an average measures that, and leaves it in the
    model after the last epoch. One with distillation needs a teacher, which a copy is made of; what it says is kept for
    trainings that see the same images (`trainers.training.distillation`). Filters that are still there to leave
    (`trainers.training.gradual_pruning`) leave by the schedule.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        recipe: TrainingRecipe,
        *,
        epochs: int,
        seed: int,
        device: torch.device | str,
        teacher: nn.Module | None = None,
    ) -> None:
        if epochs < 1:
            raise UsageError(f"epochs (={epochs}) must be at least 1.")
        recipe.check_length(epochs)
        if recipe.distillation and teacher is None:
            raise UsageError(f"distillation (={recipe.distillation}) needs a teacher.")
        self.device = torch.device(device)
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.data, self.recipe, self.epochs, self.seed = data, recipe, epochs, seed
        for layer in compressed_layers(self.model).values():
            layer.rounding = recipe.rounding
        self.done = 0
        """Epochs that were run."""
        self.pieces = recipe.grad_accum_steps
        """What a batch is cut into; it doubles where the device's memory does not suffice."""
        self._train, self._val = data.train.to(self.device), data.val.to(self.device)
        streamed = not isinstance(data.train.images, torch.Tensor)
        self._threads = threads_for_step(self.model, data.train.image_shape, recipe, self.device, streamed=streamed)
        self._graphed = maybe_cuda_graph(self.model, self.device)
        self._teacher = Teacher(teacher, self.device) if teacher is not None and recipe.distillation else None
        self._loss = Loss(recipe, self._teacher)
        self._mixer = make_mixer(recipe, data.classes)
        self._optimiser = make_optimizer(model, recipe)
        self._average = ModelEma(model, recipe.ema_decay) if recipe.ema_decay else None
        self._leaving = deferred_params(self.model)
        self.precision = training_precision(recipe.precision, self.device)
        """What the network computes in."""

    def __iter__(self) -> Iterator[Epoch]:
        """Run what is left; raises OvertoneError naming epoch and step where the loss stops being a finite number."""
        while self.done < self.epochs:
            start = time.perf_counter()
            number = self.done + 1
            generator = epoch_generator(self.seed, number, self.device)
            batches = _batches(len(self._train), self.recipe.batch_size, generator)
            rates = [self.recipe.lr_at(self.done + step / len(batches), self.epochs) for step in range(len(batches))]
            loss = self._epoch(number, batches, rates, generator)
            self._prune(number)
            found = self._validate(number)
            self.done = number
            if self._average is not None and self.done == self.epochs:
                self.model.load_state_dict(self._average.model.state_dict())
            yield Epoch(
                epoch=number,
                train_loss=loss,
                val_top1=found.top1,
                val_top5=found.top5,
                val_loss=found.loss,
                lr=rates[-1],
                seconds=time.perf_counter() - start,
            )

    def state_dict(self) -> dict[str, Any]:
        """`done`, `pieces`, and tensors by name: of the `model`, the `optimizer` and the `average`."""
        moments = self._optimiser.state_dict()["state"]
        return {
            "done": self.done,
            "pieces": self.pieces,
            "model": self.model.state_dict(),
            "optimizer": {f"{row}.{name}": value for row, kept in moments.items() for name, value in kept.items()},
            "average": {} if self._average is None else self._average.model.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; the state must be that of an equal model (UsageError) and schedule."""
        self.done, self.pieces = state["done"], state["pieces"]
        self._prune(self.done)
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise UsageError("the checkpoint is of another network; delete it to begin anew.") from error
        weights = [weight for group in self._optimiser.param_groups for weight in group["params"]]
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in state["optimizer"].items():
            row, _, name = key.partition(".")
            like = weights[int(row)]  # in its layout sums come out to the same bits
            moments.setdefault(int(row), {})[name] = torch.empty_like(like).copy_(value) if value.dim() else value
        self._optimiser.load_state_dict({**self._optimiser.state_dict(), "state": moments})
        if self._average is not None:
            self._average.model.load_state_dict(state["average"])

    def _epoch(self, number: int, batches: list[torch.Tensor], rates: list[float], generator: torch.Generator) -> float:
        """One pass over the batches of rows; the mean loss of their images."""
        self.model.train()
        losses = torch.zeros(len(batches), dtype=torch.float64, device=self.device)
        with contextlib.ExitStack() as stack:
            stack.enter_context(num_threads(self._threads))
            stack.enter_context(deterministic_cudnn())
            stack.enter_context(seeded_dropout(generator))
            stack.enter_context(stochastic_depth(self.model, self.recipe.drop_path_rate))
            if self._teacher is not None:
                count = sum(map(len, batches))
                stack.enter_context(self._teacher.epoch(self._key(self._teacher, number, count), count))
            ready = stack.enter_context(contextlib.closing(self._train.batches(batches, self.device)))
            for step, (images, labels) in enumerate(ready):
                for group in self._optimiser.param_groups:
                    group["lr"] = rates[step]
                self._prune(self.done + step / len(batches))
                losses[step] = self._step(images, labels, generator)
                if self._average is not None:
                    self._average.update(self.model, self.done * len(batches) + step)
                if (step + 1) % _CHECK_EVERY == 0 or step + 1 == len(batches):
                    _check(losses, number)
        sizes = torch.tensor([len(batch) for batch in batches], device=self.device)
        return float((losses * sizes).sum() / sizes.sum())

    def _key(self, teacher: Teacher, number: int, images: int) -> str | None:
        """What fixes a teacher's outputs in an epoch of so many images; None where they are not to be kept.

        MixUp and CutMix draw what dropout and the like draw from too, so that no other network sees the same images.
        """
        recipe = self.recipe
        if self._mixer is not None or self.pieces > 1 or images * self.data.classes * self.epochs > _MOST_OUTPUTS:
            return None
        drawn = (self.data.fingerprint, self.data.augment, recipe.rotation, recipe.batch_size, self.seed, number)
        return cache_key("teacher", teacher.sha256, drawn, self.precision, self._threads, str(self.device))

    def _step(self, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Change the weights by one batch; its mean loss."""
        images = augment(images, self.data.augment, generator, rotation=self.recipe.rotation)
        images, targets = normalize(images, self.data.mean, self.data.std), labels
        if self._mixer is not None:
            images, targets = self._mixer(images, labels)
            images = images.contiguous(memory_format=torch.channels_last)
        loss = self._gradients(images, targets)
        self._optimiser.step()
        return loss

    def _gradients(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Leave the gradients of the batch's mean loss with the weights, in as few pieces as memory has room for."""
        while True:
            loss = self._gradients_in_pieces(images, targets)
            if loss is not None:
                return loss
            if self.pieces > len(images) // 4:
                raise OvertoneError(f"{self.device} has no memory for {len(images)} images in {self.pieces} pieces.")
            self.pieces *= 2
            self._graphed = self.model  # recorded passes would keep their memory, and serve whole batches alone
            if self._teacher is not None:
                self._teacher.release()
            torch.cuda.empty_cache()

    def _gradients_in_pieces(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor | None:
        self._optimiser.zero_grad()
        total = torch.zeros((), device=self.device)
        pieces = max(1, min(self.pieces, len(images) // 2))
        network = self.model if self.pieces > 1 or self._leaving else self._graphed
        try:
            for part, wanted in zip(images.tensor_split(pieces), targets.tensor_split(pieces), strict=True):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    loss = self._loss(network(part).float(), part, wanted)
                loss = loss * (len(part) / len(images))
                loss.backward()
                total += loss.detach()
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or _NO_MEMORY in str(error):
                return None
            raise
        return total

    def _prune(self, done: float) -> None:
        """Let those filters go that have left after so many epochs; with the last one the training forgets them."""
        if not self._leaving:
            return
        last = self.recipe.gradual_pruning * self.epochs
        share = min(1.0, done / last) if last else 1.0
        for model in (self.model, *([] if self._average is None else [self._average.model])):
            advance_pruning(model, share)
        if share == 1.0:
            remove_params(self._optimiser, self._leaving)
            self._leaving = []

    def _validate(self, number: int) -> Evaluation:
        measured = self.model if self._average is None else self._average.model
        try:
            return evaluate(measured, self._val, mean=self.data.mean, std=self.data.std, device=self.device)
        except OvertoneError as error:
            raise OvertoneError(f"epoch {number}: {error}") from error


def _batches(images: int, batch_size: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Shuffled rows, a batch each; a single row left over is left out, for batch norm cannot take it."""
    order = torch.randperm(images, generator=generator, device=generator.device)
    return [batch for batch in order.split(batch_size) if len(batch) > 1]


def _check(losses: torch.Tensor, epoch: int) -> None:
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = int(bad[0])
        raise OvertoneError(f"the training loss became {float(losses[step])} in epoch {epoch}, step {step + 1}.")
