"""Which template each rebuilt filter is made from: the one that leaves the least of it, or the paper's r mod M.

Miles & Mikolajczyk give filter n the template n mod M. Any other mapping costs the index of a template a filter and
nothing when the layer runs; ours takes, for every filter by itself, the template from which its transform comes nearest
to it (in the space of weights here; gains in that of outputs, by `layers.calibration.templates`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from layers.templates.fit import transform_residuals
from layers.templates.transforms import Transform

__all__ = ["modulo_assignment", "residual_assignment"]


def modulo_assignment(rebuilt: int, templates: int, device: torch.device) -> Tensor:
    """Template r mod M for the r-th of R rebuilt filters, (R,) int64."""
    return torch.arange(rebuilt, device=device) % templates


def residual_assignment(transform: Transform, weight: Tensor, templates: Tensor, kept: Tensor) -> Tensor:
    """The template nearest to each filter of the weight (N, C, K_y, K_x) that is not kept, (N - M,) int64.

    Templates are (G, M, C / G, K_y, K_x); a filter has the same one in all groups.
    """
    groups, channels = templates.shape[0], templates.shape[2]
    return transform_residuals(transform, templates, weight[~kept].unflatten(1, (groups, channels))).argmin(1)
