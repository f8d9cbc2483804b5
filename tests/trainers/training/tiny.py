"""A network and data so small that what training does to them can be written out."""

from dataclasses import replace

import torch
from torch import nn

from trainers.data import Data, Split
from trainers.training.loop import TrainingLoop
from trainers.training.recipe import TrainingRecipe

MEAN, STD = (0.5,), (0.25,)
AT_REST = TrainingRecipe(lr=0.1, weight_decay=0.0, batch_size=16, lr_schedule="constant", precision="fp32")
"""One step from rest over 16 images: what it does can be written down."""


def network(dropout: float = 0.0, norm: bool = True) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.BatchNorm2d(6) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(24, 4),
        )


def split(n: int, seed: int) -> Split:
    """Images whose brightest quadrant is their label, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (n,), generator=generator)
    images = torch.randint(120, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = 4 * (label // 2), 4 * (label % 2)
        image[:, row : row + 4, column : column + 4] += 80
    return Split(images=images, labels=labels)


def data(train: int = 50, augment: str = "none") -> Data:
    return Data(
        train=split(train, 0), val=split(40, 1), test=split(40, 2), classes=4, mean=MEAN, std=STD, augment=augment
    )


def run(model: nn.Module, found: Data, recipe: TrainingRecipe, epochs: int = 2, seed: int = 0):
    return list(TrainingLoop(model, found, recipe, epochs=epochs, seed=seed, device="cpu"))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def untimed(history):
    return [replace(epoch, seconds=0) for epoch in history]


class Recorder(nn.Module):
    """Passes images on and remembers which came: each carries its row in its first pixels."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.batches = inner, []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            rows = (images[:, 0, 0, 0] * STD[0] + MEAN[0]) * 255
            self.batches.append(rows.detach().round().long())
        return self.inner(images)


def normalized(found: Data) -> torch.Tensor:
    return (found.train.images.float() / 255 - MEAN[0]) / STD[0]


def numbered(train: int) -> Data:
    found = data(train)
    found.train.images[:, 0, 0, 0] = torch.arange(train, dtype=torch.uint8)
    return found
