"""Filters that leave a layer one after another while it trains (Miles & Mikolajczyk, section 4: a linear schedule).

Until it leaves, a filter is what is rebuilt of it and a remainder that trains with all else, so that at first the layer
is as it was before it was pruned. When all have left, nothing is left of the remainders either.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Residuals"]


class Residuals(nn.Module):
    """What R filters have besides what is rebuilt of them, (R, C, K_y, K_x), until they leave."""

    rank: Tensor
    present: Tensor

    def __init__(self, residuals: Tensor, saliency: Tensor) -> None:
        """The least salient (R,) leaves first, of equals the first."""
        super().__init__()
        self.values = nn.Parameter(residuals.clone())
        rank = saliency.to(residuals.device).argsort(stable=True).argsort()
        self.register_buffer("rank", rank, persistent=False)
        self.register_buffer("present", torch.ones_like(rank, dtype=torch.bool), persistent=False)

    def leave(self, share: float) -> None:
        """Let so great a share of the filters, 0 to 1, have left."""
        self.present = self.rank >= round(share * len(self.rank))

    def forward(self) -> Tensor:
        """The remainders, zero where the filter has left."""
        return self.values * self.present[:, None, None, None]
