"""Stochastic depth (Huang et al. 2016): in training, images skip residual branches at random.

Networks with torchvision's StochasticDepth modules (ConvNeXt, EfficientNet, Swin) use those. In ResNets, ours and
torchvision's, a block's last norm ends its residual branch, and images are dropped behind it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from layers.errors import UsageError

__all__ = ["stochastic_depth"]


@contextmanager
def stochastic_depth(model: nn.Module, rate: float) -> Iterator[None]:
    """Let each image skip branch i of n with chance rate * i / (n - 1), i from 0, inside the block.

    The other images are scaled to the same expectation, and evaluation is untouched. Draws from torch's global state.
    Rate 0 changes nothing. Raises UsageError if the network has no known residual branch.
    """
    if not rate:
        yield
        return
    from torchvision.ops import StochasticDepth

    own = [module for module in model.modules() if isinstance(module, StochasticDepth)]
    ends = own or [end for block in model.modules() if (end := _branch_end(block)) is not None]
    if not ends:
        name = type(model).__name__
        raise UsageError(f"drop_path_rate (={rate}) must be 0 for {name}, which has no known residual branch")
    chances = [rate * index / max(1, len(ends) - 1) for index in range(len(ends))]
    before = [module.p for module in own]
    hooks = [] if own else [end.register_forward_hook(_Drop(p)) for end, p in zip(ends, chances, strict=True)]
    try:
        for module, chance in zip(own, chances, strict=False):
            module.p = chance
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, chance in zip(own, before, strict=True):
            module.p = chance


def _branch_end(block: nn.Module) -> nn.Module | None:
    """Return the last norm of a ResNet's block, bn3 or bn2, by its number of convolutions; None for other modules."""
    parts = dict(block.named_children())
    if not {"conv1", "conv2", "bn1", "bn2"} <= parts.keys():
        return None
    return parts["bn3"] if "conv3" in parts and "bn3" in parts else parts["bn2"]


class _Drop:
    def __init__(self, chance: float) -> None:
        self.chance = chance

    def __call__(self, module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        from torchvision.ops import stochastic_depth as drop

        return drop(output, self.chance, "row", module.training)
