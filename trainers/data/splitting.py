"""Which images go where: seeded shuffles that keep every class in proportion, so that small splits represent all."""

import torch

from layers.errors import OvertoneError, UsageError
from trainers.data.spec import DataSpec

__all__ = ["balanced_order", "check_sizes", "split_rows"]

Rows = dict[str, tuple[str, torch.Tensor]]
"""For each split the part that it comes from and the rows there."""


def balanced_order(labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shuffle the rows (n,) of the labels (n,) so that every prefix holds each class in proportion.

    The i-th of a class's k shuffled rows stands at (i + 1/2) / k of the whole; ties stay in shuffled order. With C
    classes a class is off by at most 1/2 + (C - 2) k / 2n images, less than one if all classes are equally large.
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    position = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        rows = (labels[shuffled] == label).nonzero().squeeze(1)
        position[rows] = (torch.arange(len(rows), dtype=torch.float64) + 0.5) / len(rows)
    return shuffled[position.argsort(stable=True)]


def split_rows(spec: DataSpec, labels: dict[str, torch.Tensor], holdout: float, generator: torch.Generator) -> Rows:
    """Return for each split ('train', 'val', 'test') the part it comes from and the rows there.

    `labels` are by part; `holdout` is the share of the training part that validation takes, and the test split too if
    there is no part 'test'. Raises OvertoneError for a split that is too small to be used, UsageError if there is no
    part 'validation' where it is asked for.
    """
    train = balanced_order(labels["train"], generator)
    rest = "test" if "test" in labels else "train"
    if rest == "test":
        test = balanced_order(labels["test"], generator)
    else:
        held = round(holdout * len(train))
        test, train = train[:held], train[held:]
    if spec.val_from == "validation":
        if "validation" not in labels:
            raise UsageError(
                f"val_from (='validation') must be train or test: {spec.name!r} has no validation-* beside test-*"
            )
        part, val = "validation", balanced_order(labels["validation"], generator)
    elif spec.val_from == "train":
        held = round(holdout * len(train))
        part, val, train = "train", train[:held], train[held:]
    else:
        held = len(test) // 2
        part, val, test = rest, test[:held], test[held:]
    rows = {"train": ("train", train[: spec.train_limit]), "val": (part, val), "test": (rest, test)}
    return check_sizes(spec.name, rows)


def check_sizes(data: str, rows: Rows) -> Rows:
    """Return the rows of each split; raise OvertoneError for a split of `data` that is too small to be used."""
    for name, (_, indices) in rows.items():
        least = 2 if name == "train" else 1  # batch norm needs two images
        if len(indices) < least:
            raise OvertoneError(
                f"the {name} split of {data!r} has {len(indices)} images; it must have at least {least}"
            )
    return rows
