"""The scales of a network's activations in int8, from what they are on calibration images. No label is read.

A tensor that has no negative value on these images is unsigned. Its largest code stands for a share of the largest
magnitude seen, the share with the least mean squared error of rounding and saturation together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from layers.integer.calls import Call, CallMode
from layers.integer.inputs import seen_inputs, set_input_grid, unrounded_inputs
from layers.integer.network import int8_layers, round_activations
from layers.integer.rounding import ACTIVATION_CODES, round_activation, zero_point
from layers.integer.sites import RoundingPlan, plan_rounding
from trainers.runtime.determinism import eval_mode

__all__ = ["plan_activations", "scale_activations"]

_PIECE_PIXELS = 1 << 19
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Of the largest magnitude, which the largest code may stand for."""

_SAMPLE = 1 << 18
"""Values of a tensor in one piece of the images that errors are summed over, at least."""


def plan_activations(model: nn.Module, image: Tensor) -> None:
    """Plan where a model with int8 layers rounds, from one image (1, C, H, W), in place; the grids are still unset."""
    if layers := int8_layers(model):
        plan = _plan(model, layers, image)
        round_activations(model, plan, torch.zeros(plan.rows, 2, device=image.device))


def scale_activations(model: nn.Module, images: Tensor) -> None:
    """Set where a model with int8 layers rounds, and on which grids, in place, from images (n, C, H, W)."""
    layers = int8_layers(model)
    if not layers:
        return
    plan = _plan(model, layers, images[:1])
    pieces = images.split(max(1, _PIECE_PIXELS // (images.shape[2] * images.shape[3])))
    grids = _fitted_grids(model, plan, layers, pieces)
    rows = [grids[row] for row in range(plan.rows)]
    round_activations(model, plan, torch.stack(rows) if rows else torch.zeros(0, 2, device=images.device))
    for name, layer in layers.items():
        set_input_grid(layer, grids[plan.inputs.get(name, name)])


def _plan(model: nn.Module, layers: Mapping[str, nn.Module], image: Tensor) -> RoundingPlan:
    with eval_mode(model), unrounded_inputs():
        return plan_rounding(model, layers, image)


_Key = int | str
"""A row of the plan's grids, or the name of a layer whose input is on none."""


def _fitted_grids(
    model: nn.Module, plan: RoundingPlan, layers: Mapping[str, nn.Module], pieces: Sequence[Tensor]
) -> dict[_Key, Tensor]:
    ranges: dict[_Key, _Range] = {}
    _watch(model, plan, layers, pieces, lambda key, x: ranges.setdefault(key, _Range()).add(x))
    errors = {key: _Errors(found.grids()) for key, found in ranges.items()}
    _watch(model, plan, layers, pieces, lambda key, x: errors[key].add(x))
    return {key: found.best() for key, found in errors.items()}


class _Range:
    """Least and largest value of a tensor."""

    def __init__(self) -> None:
        self._ends: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        self._ends.append(torch.stack(torch.aminmax(x)))

    def grids(self) -> Tensor:
        """Return a grid for each share, (shares, 2)."""
        low, high = (ends.float() for ends in torch.stack(self._ends).unbind(1))
        zero = zero_point(bool(low.min() < 0))
        largest = max(float(-low.min()), float(high.max())) or 1.0
        scales = torch.tensor(_SHARES, device=low.device) * (largest / (ACTIVATION_CODES - zero))
        return torch.stack([scales, torch.full_like(scales, zero)], 1)


class _Errors:
    """Squared errors of a tensor on several grids."""

    def __init__(self, grids: Tensor) -> None:
        self._grids = grids
        self._sums = torch.zeros(len(grids), dtype=torch.float64, device=grids.device)

    def add(self, x: Tensor) -> None:
        x = x.reshape(-1)[:: x.numel() // _SAMPLE | 1]  # an odd step meets all pixels and channels
        self._sums += torch.stack([(round_activation(x, grid) - x).square().sum().double() for grid in self._grids])

    def best(self) -> Tensor:
        return self._grids[int(self._sums.argmin())]


def _watch(
    model: nn.Module,
    plan: RoundingPlan,
    layers: Mapping[str, nn.Module],
    pieces: Iterable[Tensor],
    add: Callable[[_Key, Tensor], None],
) -> None:
    """Run the network unrounded on images, and show each tensor that is to be rounded."""
    names = {id(layer): name for name, layer in layers.items()}

    def see(layer: nn.Module, x: Tensor) -> None:
        name = names[id(layer)]
        if name not in plan.inputs:
            add(name, x)

    with eval_mode(model), seen_inputs(see):
        for images in pieces:
            with _Watch(plan, add):
                model(images)


class _Watch(CallMode):
    def __init__(self, plan: RoundingPlan, add: Callable[[_Key, Tensor], None]) -> None:
        super().__init__()
        self._plan = plan
        self._add = add

    def called(self, call: Call) -> Tensor:
        row = self._plan.grids.get(call.number)
        if row is not None and call.kind != "same_values":
            self._add(row, call.result)
        return call.result
