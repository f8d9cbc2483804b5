"""What a packed file's card says about activations in int8: where a network rounds them, and on which grids.

`{"calls": 72, "grids": [[2, 0.0159, 0], [7, 0.0138, 128]], "inputs": {"conv1": [0.0208, 128]}}`: of 72 counted calls
(`layers.integer.calls`), calls 2 and 7 give tensors that are rounded to these scales and zero points, and each int8
layer rounds its input.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layers import OvertoneError
from layers.integer.inputs import set_input_grid
from layers.integer.network import IntegerNetwork, int8_layers, round_activations
from layers.integer.rounding import zero_point
from layers.integer.sites import RoundingPlan

__all__ = ["check_activations", "describe_activations", "restore_activations"]

_MOST_CALLS = 1 << 20
_LEAST_SCALE, _LARGEST_SCALE = 1e-30, 1e30
_ZEROS = (zero_point(False), zero_point(True))


def describe_activations(model: nn.Module) -> dict[str, Any] | None:
    """Return what the card says, plain JSON; None for a network without int8 layers.

    Raises `OvertoneError` if its activations have no scales yet.
    """
    layers = int8_layers(model)
    if not layers:
        return None
    unset = next((name for name, layer in layers.items() if not layer.has_input_grid), None)
    if unset is not None or not isinstance(model, IntegerNetwork):
        name = unset or next(iter(layers))
        raise OvertoneError(f"cannot pack layer {name!r} in int8: its activations have no scale yet")
    grids = [[call, *_plain(model.activation_grids[row])] for call, row in model.rounding_plan.grids.items()]
    inputs = {name: _plain(layer.get_buffer("input_grid")) for name, layer in layers.items()}
    return {"calls": model.rounding_plan.calls, "grids": grids, "inputs": inputs}


def restore_activations(model: nn.Module, card: Mapping[str, Any] | None) -> None:
    """Have a network round as its card, already checked, says."""
    if card is None:
        return
    rows = {call: row for row, (call, *_) in enumerate(card["grids"])}
    grids = torch.tensor([grid for _, *grid in card["grids"]], dtype=torch.float32).view(-1, 2)
    round_activations(model, RoundingPlan(card["calls"], rows, {}), grids)
    for name, layer in int8_layers(model).items():
        set_input_grid(layer, torch.tensor(card["inputs"][name], dtype=torch.float32))


def check_activations(card: object, layers: Collection[str]) -> None:
    """Raise `ValueError` unless this is what a card says about a network with these int8 layers."""
    if not layers and card is None:
        return
    if not isinstance(card, dict) or card.keys() != {"calls", "grids", "inputs"}:
        raise ValueError(
            "activations must be an object with calls, grids and inputs if, and only if, layers are in int8"
        )
    calls, grids, inputs = card["calls"], card["grids"], card["inputs"]
    if type(calls) is not int or not 0 <= calls <= _MOST_CALLS:
        raise ValueError(f"calls (={calls!r}) of activations must be a whole number from 0 to {_MOST_CALLS}")
    if not isinstance(grids, list) or not all(isinstance(row, list) and len(row) == 3 for row in grids):
        raise ValueError("grids of activations must be a list of [call, scale, zero point]")
    numbers = [row[0] for row in grids]
    if not all(type(number) is int and 0 <= number < calls for number in numbers) or numbers != sorted(set(numbers)):
        raise ValueError(f"the calls of activations' grids must be whole numbers from 0 to {calls - 1} in their order")
    if not isinstance(inputs, dict) or inputs.keys() != set(layers):
        raise ValueError("inputs of activations must name each layer in int8, and no other")
    for grid in (*(row[1:] for row in grids), *inputs.values()):
        _check_grid(grid)


def _check_grid(grid: object) -> None:
    pair = grid if isinstance(grid, list) and len(grid) == 2 else [None, None]
    scale, zero = pair
    if type(scale) is not float or not _LEAST_SCALE <= scale <= _LARGEST_SCALE:
        raise ValueError(f"scale (={scale!r}) of activations must be a number from {_LEAST_SCALE} to {_LARGEST_SCALE}")
    if type(zero) is not int or zero not in _ZEROS:
        raise ValueError(f"zero point (={zero!r}) of activations must be {' or '.join(map(str, _ZEROS))}")


def _plain(grid: Tensor) -> list[Any]:
    """Return scale and zero point as the shortest numbers that mean them."""
    scale = float(grid[0])
    digits = next(n for n in range(6, 18) if float(torch.tensor(float(f"{scale:.{n}g}"))) == scale)
    return [float(f"{scale:.{digits}g}"), int(grid[1])]
