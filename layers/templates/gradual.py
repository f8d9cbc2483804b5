"""Filters pruned one after another while a layer trains (Miles & Mikolajczyk, section 4: a linear schedule).

Until it is pruned, a filter is what is rebuilt of it plus a residual that trains with all else, so that the layer at
first computes what it did before pruning. Once all are pruned the residuals are gone too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Residuals"]


class Residuals(nn.Module):
    """What R filters have besides what is rebuilt of them, (R, C, K_y, K_x), until they are pruned."""

    rank: Tensor
    """Each filter's position in the order of pruning, (R,) int64."""
    present: Tensor
    """Which filters are not pruned yet, (R,) bool."""

    def __init__(self, residuals: Tensor, saliency: Tensor) -> None:
        """Order the filters by saliency (R,), least first; of equals the first."""
        super().__init__()
        self.values = nn.Parameter(residuals.clone())
        rank = saliency.to(residuals.device).argsort(stable=True).argsort()
        self.register_buffer("rank", rank, persistent=False)
        self.register_buffer("present", torch.ones_like(rank, dtype=torch.bool), persistent=False)

    def prune(self, share: float) -> None:
        """Prune this share of the filters, 0 to 1; a smaller share brings filters back."""
        self.present = self.rank >= round(share * len(self.rank))

    def forward(self) -> Tensor:
        """Return the residuals, zero for pruned filters."""
        return self.values * self.present[:, None, None, None]
