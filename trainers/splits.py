"""Seeded shuffles that keep every class in proportion, so that small splits of small sets stay representative."""

import torch

__all__ = ["balanced_order"]


def balanced_order(labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shuffled rows (n,) of the labels (n,), any slice of which holds each class in proportion to within one image.

    The i-th of a class's k shuffled rows stands at (i + 1/2) / k of the whole; ties stay in shuffled order.
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        rows = (labels[shuffled] == label).nonzero().squeeze(1)
        place[rows] = (torch.arange(len(rows), dtype=torch.float64) + 0.5) / len(rows)
    return shuffled[place.argsort(stable=True)]
