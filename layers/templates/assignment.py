"""From which template each pruned filter is rebuilt: the nearest one, or the paper's r mod M.

Miles & Mikolajczyk give filter n the template n mod M. Any other mapping costs a template's index for each filter, and
nothing when the layer runs. Ours gives each filter the template whose best transform is nearest to it, in the space of
weights here; `layers.calibration.templates` does so for gains in the space of outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layers.templates.fit import transform_residuals
from layers.templates.transforms import Transform

__all__ = ["modulo_assignment", "residual_assignment"]


def modulo_assignment(pruned: int, templates: int, device: torch.device) -> Tensor:
    """Return template r mod M for the r-th of R pruned filters, (R,) int64."""
    return torch.arange(pruned, device=device) % templates


def residual_assignment(transform: Transform, weight: Tensor, templates: Tensor, template_mask: Tensor) -> Tensor:
    """Return the template nearest to each pruned filter of a weight (N, C, K_y, K_x), (N - M,) int64.

    `template_mask` (N,) says which filters are templates. Templates are (G, M, C / G, K_y, K_x); a filter has the same
    one in all groups.
    """
    pruned = weight[~template_mask].unflatten(1, (templates.shape[0], templates.shape[2]))
    return transform_residuals(transform, templates, pruned).argmin(1)
