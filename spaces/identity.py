"""What an uncompressed network computes, as plain data: the same name and weights can run other code.

A factory or class may be edited while its name, its weights and their shapes stay. So a network is known by its
structure and by its outputs for a fixed batch too. Outputs are compared within a tolerance, since machines add in other
orders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["network_difference", "network_identity"]

_IMAGES = 2
_OUTPUTS = 10
"""Outputs of each image that are kept."""
_TOLERANCE = 1e-3
"""Largest difference of outputs that count as equal, as a share of the largest of them."""


def network_identity(model: nn.Module, image: tuple[int, int, int]) -> dict[str, Any]:
    """Return the identity of a model on the CPU that takes (C, H, W) images, plain JSON data.

    `structure_sha256` is over the classes and settings of all its modules by name, `outputs` are the first logits of
    two images of seeded noise, in evaluation mode.
    """
    import torch

    from spaces.modes import evaluation_mode

    batch = torch.randn(_IMAGES, *image, generator=torch.Generator().manual_seed(0))
    with evaluation_mode(model), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # for networks that draw in evaluation mode too
        logits = model(batch)
    lines = [f"{name} {type(module).__name__} {module.extra_repr()}" for name, module in model.named_modules()]
    return {
        "structure_sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "outputs": torch.nan_to_num(logits[:, :_OUTPUTS].double()).flatten().tolist(),
    }


def network_difference(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> str:
    """Return in what two networks differ by their `network_identity`: `structure`, `outputs`, or "" if in nothing.

    A network whose identity is not known differs from every other.
    """
    if not one or not other or one["structure_sha256"] != other["structure_sha256"]:
        return "structure"
    limit = _TOLERANCE * max(map(abs, one["outputs"]), default=0.0)
    pairs = zip(one["outputs"], other["outputs"], strict=False)
    same = len(one["outputs"]) == len(other["outputs"]) and all(abs(a - b) <= limit for a, b in pairs)
    return "" if same else "outputs"
