"""Train a network on data that live on its device, one epoch at a time.

Images stay uint8 until their batch is cropped, mirrored and normalised on the device; the network runs channels last.
Every random number comes from a generator of (seed, epoch), so the same call on the same machine and with as many
threads gives the same weights bit for bit, and what runs between two epochs cannot change the next one.

Distillation is that of Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", section 2, at
temperature 2: the teacher sees the same augmented images.
"""

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from layers.errors import OvertoneError, UsageError
from trainers.augment import augment, normalise
from trainers.data import Data, Split
from trainers.evaluate import evaluate
from trainers.repeatable import epoch_generator, repeatable_kernels, seeded_dropout
from trainers.schedule import Schedule

__all__ = ["Epoch", "Schedule", "finetune"]

_TEMPERATURE = 2.0
_CHECK_EVERY = 50  # steps between looks at the losses: a look makes a GPU wait


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch came to."""

    epoch: int
    """From 1."""
    train_loss: float
    """Mean over the images trained on, as they came: augmented, smoothed, the network still changing."""
    val_top1: float
    """Share of validation images, 0 to 1."""
    val_loss: float
    """Mean cross-entropy in nats."""
    lr: float
    """Learning rate of the last step."""
    seconds: float
    """Wall time of training and validation."""


def finetune(
    model: nn.Module,
    data: Data,
    schedule: Schedule,
    *,
    epochs: int,
    seed: int,
    device: torch.device | str,
    teacher: nn.Module | None = None,
) -> Iterator[Epoch]:
    """Train the model in place; it is at the end of an epoch, in training mode, whenever one is yielded.

    A schedule with distillation needs a teacher, which a copy is made of. Raises OvertoneError naming epoch and step
    where the loss stops being a finite number.
    """
    if epochs < 1:
        raise UsageError(f"epochs (={epochs}) must be at least 1.")
    if schedule.distillation and teacher is None:
        raise UsageError(f"distillation (={schedule.distillation}) needs a teacher.")
    return _epochs(model, data, schedule, epochs, seed, torch.device(device), teacher)


def _epochs(
    model: nn.Module,
    data: Data,
    schedule: Schedule,
    epochs: int,
    seed: int,
    device: torch.device,
    teacher: nn.Module | None,
) -> Iterator[Epoch]:
    model.to(device).to(memory_format=torch.channels_last)
    if teacher is not None:
        teacher = copy.deepcopy(teacher).to(device).to(memory_format=torch.channels_last).eval()
    loss_of = _Loss(schedule, teacher)
    train, val = data.train.to(device), data.val.to(device)
    optimiser = _optimiser(model, schedule)
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        generator = epoch_generator(seed, epoch, device)
        batches = _batches(len(train), schedule.batch_size, generator)
        rates = [schedule.lr_at(epoch - 1 + step / len(batches), epochs) for step in range(len(batches))]
        model.train()
        with repeatable_kernels(), seeded_dropout(generator):
            loss = _train_epoch(model, data, train, optimiser, loss_of, batches, rates, epoch, generator)
        try:
            found = evaluate(model, val, mean=data.mean, std=data.std, device=device)
        except OvertoneError as error:
            raise OvertoneError(f"epoch {epoch}: {error}") from error
        yield Epoch(
            epoch=epoch,
            train_loss=loss,
            val_top1=found.top1,
            val_loss=found.loss,
            lr=rates[-1],
            seconds=time.perf_counter() - start,
        )


def _train_epoch(
    model: nn.Module,
    data: Data,
    train: Split,
    optimiser: torch.optim.Optimizer,
    loss_of: "_Loss",
    batches: list[torch.Tensor],
    rates: list[float],
    epoch: int,
    generator: torch.Generator,
) -> float:
    """One pass over the batches; the mean loss of their images."""
    losses = torch.zeros(len(batches), dtype=torch.float64, device=train.images.device)
    for step, (batch, rate) in enumerate(zip(batches, rates, strict=True)):
        for group in optimiser.param_groups:
            group["lr"] = rate
        images = normalise(augment(train.images[batch], data.augment, generator), data.mean, data.std)
        loss = loss_of(model, images, train.labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses[step] = loss.detach()
        if (step + 1) % _CHECK_EVERY == 0 or step + 1 == len(batches):
            _check(losses, epoch)
    sizes = torch.tensor([len(batch) for batch in batches], device=losses.device)
    return float((losses * sizes).sum() / sizes.sum())


class _Loss:
    """The loss of a batch by the schedule; the teacher, where there is one, sees the same images."""

    def __init__(self, schedule: Schedule, teacher: nn.Module | None) -> None:
        self.schedule, self.teacher = schedule, teacher

    def __call__(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        share = self.schedule.distillation
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.schedule.precision == "bf16"):
            logits = model(images).float()
            if self.teacher is None or not share:
                return F.cross_entropy(logits, labels, label_smoothing=self.schedule.label_smoothing)
            with torch.no_grad():
                soft = F.log_softmax(self.teacher(images).float() / _TEMPERATURE, 1)
        ours = F.log_softmax(logits / _TEMPERATURE, 1)
        distance = _TEMPERATURE**2 * F.kl_div(ours, soft, reduction="batchmean", log_target=True)
        hard = F.cross_entropy(logits, labels, label_smoothing=self.schedule.label_smoothing)
        return share * distance + (1 - share) * hard


def _optimiser(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in trained if weight.dim() > 1], "weight_decay": schedule.weight_decay},
        {"params": [weight for weight in trained if weight.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=schedule.lr, momentum=schedule.momentum, nesterov=schedule.nesterov)


def _batches(images: int, batch_size: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Shuffled rows, a batch each; a single row left over is left out, for batch norm cannot take it."""
    order = torch.randperm(images, generator=generator, device=generator.device)
    return [batch for batch in order.split(batch_size) if len(batch) > 1]


def _check(losses: torch.Tensor, epoch: int) -> None:
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = int(bad[0])
        raise OvertoneError(f"the training loss became {float(losses[step])} in epoch {epoch}, step {step + 1}.")
