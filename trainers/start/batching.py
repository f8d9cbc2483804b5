"""Whether a network takes a batch as so many images, in their order, as far as a layer of it can tell."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from layers import OvertoneError, UsageError
from layers.errors import translate_errors
from trainers.start.lockstep import only_input, random_state, set_random_state

__all__ = ["Batching"]

_IMAGES = 8
_TOLERANCE = 1e-3
"""Of a sum of many values, against the root of their summed squares; rounding leaves far less."""


class Batching:
    """What the first call of each module gets of a single image.

    Recorded of a network in evaluation mode, by the modules' names. Raises `OvertoneError` if the network does another
    thing each time, `UsageError` if it cannot take the images.
    """

    def __init__(self, network: nn.Module, names: Collection[str], images: Tensor) -> None:
        singles = [_first_inputs(network, names, image) for image in images[:_IMAGES].split(1)]
        again = _first_inputs(network, names, images[:1])
        if again.keys() != singles[0].keys() or not all(_agree(again[name], singles[0][name]) for name in again):
            raise OvertoneError("cannot calibrate a network that gives other outputs for the same image each time")
        self._values = {name: count for name, (count, _, _) in singles[0].items()}
        together = _first_inputs(network, names, images[: len(singles)])
        self.reorders = any(_are_reordered(together[name], [s.get(name) for s in singles]) for name in together)
        """Whether layers get the images of a batch in another order: which one may depend on their values."""

    def splits(self, name: str, x: Tensor, images: int) -> bool:
        """Return whether the input of a module's first call does not hold so many images."""
        return x.numel() != self._values.get(name, x.numel() // images) * images


_Input = tuple[int, Tensor, Tensor]
"""Number of values, and for each image a sum of them, with fixed weights, and the root of their summed squares."""


def _first_inputs(network: nn.Module, names: Collection[str], images: Tensor) -> dict[str, _Input]:
    inputs: dict[str, _Input] = {}

    def recorder(name: str) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name not in inputs:
                inputs[name] = _summed(only_input(args, kwargs), len(images))

        return record

    hooks = [network.get_submodule(name).register_forward_pre_hook(recorder(name), with_kwargs=True) for name in names]
    state = random_state(images.device)
    failure = f"calibration images must fit the network, {len(images)} at a time"
    try:
        with torch.no_grad(), translate_errors(failure, Exception, to=UsageError):  # of the user's own code
            network(images)
    finally:
        set_random_state(state, images.device)
        for hook in hooks:
            hook.remove()
    return inputs


def _summed(x: Tensor, images: int) -> _Input:
    rows = x.reshape(images if x.numel() % images == 0 else 1, -1).double()
    weights = torch.arange(rows.shape[1], dtype=torch.float64, device=x.device).cos()
    return x.numel(), rows @ weights, rows.norm(dim=1)


def _agree(one: _Input, other: _Input) -> bool:
    return one[0] == other[0] and bool(_near(one, other).diagonal().all())


def _are_reordered(together: _Input, singles: list[_Input | None]) -> bool:
    """Return whether the rows of a batch are those of its images, but not in their order."""
    apart = [single for single in singles if single is not None]
    if len(apart) < len(singles) or together[1].shape != (len(singles),):
        return False
    near = _near(together, (0, torch.cat([sums for _, sums, _ in apart]), torch.cat([norms for *_, norms in apart])))
    return not bool(near.diagonal().all()) and bool(near.any(0).all() and near.any(1).all())


def _near(one: _Input, other: _Input) -> Tensor:
    """Return which rows agree, (n, m)."""
    if one[1].shape != other[1].shape:
        return torch.zeros(1, 1, dtype=torch.bool)
    scale = torch.maximum(one[2][:, None], other[2])
    near = (one[1][:, None] - other[1]).abs() <= _TOLERANCE * scale
    return near | ~(one[1][:, None] - other[1]).isfinite()
