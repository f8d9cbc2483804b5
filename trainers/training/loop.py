"""The training of a network on data that live on its device, one epoch at a time.

Images stay uint8 until their batch is cropped, mirrored and normalized on the device; the network runs channels last.
Every random number comes from a generator of (seed, epoch). So the same call on the same machine and with the same
number of threads gives the same weights bit for bit, nothing that runs between two epochs can change the next one, and
a training that stopped continues from its state after any epoch as if it had not stopped.
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
from trainers.data.augment import augment
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

__all__ = ["Epoch", "TrainingLoop"]

_NO_MEMORY = "DefaultCPUAllocator: "
"""How the error of a CPU's allocator begins; it has no class of its own."""
_CHECK_EVERY = 50  # steps between checks of the losses: a check makes a GPU wait
_MOST_OUTPUTS = 2**26
"""Outputs of a teacher in one training; if there are more, they are not cached."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch measured."""

    epoch: int
    """Number of the epoch, from 1."""
    train_loss: float
    """Mean over the training images as the network saw them: augmented, smoothed, while it changed."""
    score: float
    """Metric by which trials are compared (`trainers.score.SCORE_NAME`)."""
    metrics: dict[str, float]
    """Metrics of the validation split by name."""
    lr: float
    """Learning rate of the last step."""
    seconds: float
    """Wall time of training and validation."""


class TrainingLoop:
    """The training of one model, in place: iterating runs and yields the epochs that are left.

    When an epoch is yielded the model is as that epoch left it, in training mode, and `state_dict` is what a new
    TrainingLoop of the same arguments needs to continue from there. A recipe with averaged weights measures those, and
    leaves them in the model after the last epoch. One with distillation needs a teacher, which is copied; its outputs
    are cached for trainings that see the same images (`trainers.training.distillation`). Filters whose pruning is
    deferred (`trainers.training.gradual_pruning`) are pruned as the recipe says.
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
            raise UsageError(f"epochs (={epochs}) must be at least 1")
        recipe.check_length(epochs)
        if recipe.distillation and teacher is None:
            raise UsageError(f"distillation (={recipe.distillation}) must be 0 without a teacher")
        self.device = torch.device(device)
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.data = data
        self.recipe = recipe
        self.epochs = epochs
        self.seed = seed
        for layer in compressed_layers(self.model).values():
            layer.rounding = recipe.rounding
        self.done = 0
        """Epochs that have run."""
        self.pieces = recipe.grad_accum_steps
        """Pieces that a batch is cut into; their number doubles when the device runs out of memory."""
        self._train = data.train.to(self.device)
        self._val = data.val.to(self.device)
        streamed = not isinstance(data.train.images, torch.Tensor)
        piece = recipe.batch_size // recipe.grad_accum_steps
        self.threads = threads_for_step(self.model, data.train.image_shape, piece, self.device, streamed=streamed)
        """CPU threads of a training step."""
        self._forward = maybe_cuda_graph(self.model, self.device)
        self._teacher = Teacher(teacher, self.device) if teacher is not None and recipe.distillation else None
        self._loss = Loss(recipe, self._teacher)
        self._mixer = make_mixer(recipe, data.classes)
        self._optimizer = make_optimizer(model, recipe)
        self._ema = ModelEma(model, recipe.ema_decay) if recipe.ema_decay else None
        self._deferred = deferred_params(self.model)
        self.precision = training_precision(recipe.precision, self.device)
        """Precision that the network computes in, 'fp32' or 'bf16'."""

    def __iter__(self) -> Iterator[Epoch]:
        """Run the epochs that are left; raise OvertoneError naming epoch and step if the loss is not finite."""
        while self.done < self.epochs:
            started = time.perf_counter()
            number = self.done + 1
            generator = epoch_generator(self.seed, number, self.device)
            batches = _batches(len(self._train), self.recipe.batch_size, generator)
            rates = [self.recipe.lr_at(self.done + step / len(batches), self.epochs) for step in range(len(batches))]
            loss = self._epoch(number, batches, rates, generator)
            self._prune(number)
            evaluation = self._validate(number)
            self.done = number
            if self._ema is not None and self.done == self.epochs:
                self.model.load_state_dict(self._ema.model.state_dict())
            yield Epoch(
                epoch=number,
                train_loss=loss,
                score=evaluation.top1,
                metrics=evaluation.metrics("val"),
                lr=rates[-1],
                seconds=time.perf_counter() - started,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return `done`, `pieces`, and tensors by name: of the `model`, the `optimizer` and the `ema`."""
        moments = self._optimizer.state_dict()["state"]
        return {
            "done": self.done,
            "pieces": self.pieces,
            "model": self.model.state_dict(),
            "optimizer": {f"{row}.{name}": value for row, group in moments.items() for name, value in group.items()},
            "ema": {} if self._ema is None else self._ema.model.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, which must be that of an equal model (else UsageError) and recipe."""
        self.done = state["done"]
        self.pieces = state["pieces"]
        self._prune(self.done)
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise UsageError("the checkpoint is of another network; delete it to start anew") from error
        weights = [weight for group in self._optimizer.param_groups for weight in group["params"]]
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in state["optimizer"].items():
            row, _, name = key.partition(".")
            like = weights[int(row)]  # in its memory layout sums have the same bits
            moments.setdefault(int(row), {})[name] = torch.empty_like(like).copy_(value) if value.dim() else value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": moments})
        if self._ema is not None:
            self._ema.model.load_state_dict(state["ema"])

    def _epoch(self, number: int, batches: list[torch.Tensor], rates: list[float], generator: torch.Generator) -> float:
        """Train on the batches of rows once; return the mean loss of their images."""
        self.model.train()
        losses = torch.zeros(len(batches), dtype=torch.float64, device=self.device)
        with contextlib.ExitStack() as stack:
            stack.enter_context(num_threads(self.threads))
            stack.enter_context(deterministic_cudnn())
            stack.enter_context(seeded_dropout(generator))
            stack.enter_context(stochastic_depth(self.model, self.recipe.drop_path_rate))
            if self._teacher is not None:
                count = sum(map(len, batches))
                stack.enter_context(self._teacher.epoch(self._key(self._teacher, number, count), count))
            ready = stack.enter_context(contextlib.closing(self._train.batches(batches, self.device)))
            for step, (images, labels) in enumerate(ready):
                for group in self._optimizer.param_groups:
                    group["lr"] = rates[step]
                self._prune(self.done + step / len(batches))
                losses[step] = self._step(images, labels, generator)
                if self._ema is not None:
                    self._ema.update(self.model, self.done * len(batches) + step)
                if (step + 1) % _CHECK_EVERY == 0 or step + 1 == len(batches):
                    _check(losses, number)
        sizes = torch.tensor([len(batch) for batch in batches], device=self.device)
        return float((losses * sizes).sum() / sizes.sum())

    def _key(self, teacher: Teacher, number: int, images: int) -> str | None:
        """Return the cache key of a teacher's outputs in an epoch over `images` images; None if they are not cached.

        MixUp and CutMix draw from the generator that dropout draws from, so no other network sees the same images.
        """
        recipe = self.recipe
        if self._mixer is not None or self.pieces > 1 or images * self.data.classes * self.epochs > _MOST_OUTPUTS:
            return None
        draws = (self.data.fingerprint, self.data.augment, recipe.rotation, recipe.batch_size, self.seed, number)
        return cache_key("teacher", teacher.sha256, draws, self.precision, self.threads, str(self.device))

    def _step(self, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Change the weights by one batch; return its mean loss."""
        images = augment(images, self.data.augment, generator, rotation=self.recipe.rotation)
        images = self.data.normalize(images)
        targets = labels
        if self._mixer is not None:
            images, targets = self._mixer(images, labels)
            images = images.contiguous(memory_format=torch.channels_last)
        loss = self._gradients(images, targets)
        self._optimizer.step()
        return loss

    def _gradients(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Set the weights' gradients of the batch's mean loss, in as few pieces as memory allows; return the loss."""
        while True:
            loss = self._gradients_in_pieces(images, targets)
            if loss is not None:
                return loss
            if self.pieces > len(images) // 4:
                raise OvertoneError(f"{self.device} has no memory for {len(images)} images in {self.pieces} pieces")
            self.pieces *= 2
            self._forward = self.model  # recorded passes would keep their memory, and take whole batches only
            if self._teacher is not None:
                self._teacher.release()
            torch.cuda.empty_cache()

    def _gradients_in_pieces(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor | None:
        self._optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        pieces = max(1, min(self.pieces, len(images) // 2))
        network = self.model if self.pieces > 1 or self._deferred else self._forward
        try:
            for piece, target in zip(images.tensor_split(pieces), targets.tensor_split(pieces), strict=True):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    loss = self._loss(network(piece).float(), piece, target)
                loss = loss * (len(piece) / len(images))
                loss.backward()
                total += loss.detach()
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or _NO_MEMORY in str(error):
                return None
            raise
        return total

    def _prune(self, done: float) -> None:
        """Prune the filters that are due after `done` epochs; with the last of them their parameters go."""
        if not self._deferred:
            return
        last = self.recipe.gradual_pruning * self.epochs
        share = min(1.0, done / last) if last else 1.0
        for model in (self.model, *([] if self._ema is None else [self._ema.model])):
            advance_pruning(model, share)
        if share == 1.0:
            remove_params(self._optimizer, self._deferred)
            self._deferred = []

    def _validate(self, number: int) -> Evaluation:
        model = self.model if self._ema is None else self._ema.model
        try:
            return evaluate(model, self._val, self.data.normalize, device=self.device)
        except OvertoneError as error:
            raise OvertoneError(f"epoch {number}: {error}") from error


def _batches(images: int, batch_size: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Return shuffled rows, a tensor for each batch; a last batch of one row is dropped: batch norm cannot take it."""
    order = torch.randperm(images, generator=generator, device=generator.device)
    return [batch for batch in order.split(batch_size) if len(batch) > 1]


def _check(losses: torch.Tensor, epoch: int) -> None:
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = int(bad[0])
        raise OvertoneError(f"the training loss became {float(losses[step])} in epoch {epoch}, step {step + 1}")
