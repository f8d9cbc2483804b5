"""Launches the CUDA kernels of template convolutions, `gather.cu`; `layers.templates.reference` says what they give."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from layers.errors import OvertoneWarning
from layers.kernels import gpu
from layers.templates.reference import ConvGeometry, gather_backward_reference, gather_reference

__all__ = ["gather", "gather_backward", "macros", "plan", "is_available"]

_THREADS = 256
_BLOCKS = 512
"""Blocks that keep a GPU busy."""
_MANY = 1 << 30
"""Values of a tensor whose places are counted in 64 bits."""
_FAR = 1 << 28
"""Likewise for padding, strides and dilations."""
_TYPES = {torch.float32: "FLOAT32", torch.float16: "FLOAT16", torch.bfloat16: "BFLOAT16"}
_TRIED = ((torch.float32, False, True), (torch.float16, True, False), (torch.bfloat16, True, True))
"""Types, whether channels are last, and whether operators are diagonal, that a GPU is tried with."""


def gather(out: Tensor, maps: Tensor, operators: Tensor, source: Tensor, where: ConvGeometry) -> None:
    """Fill `out`, laid out like the maps; all are on one GPU, float16, bfloat16 or float32."""
    if not maps.numel() or not out.numel():
        out.zero_()
        return
    gains = _laid_out(operators, maps)
    _launch("gather", (maps, gains, source, out), maps, operators, out, where)


def gather_backward(
    to_maps: Tensor,
    to_operators: Tensor,
    grad: Tensor,
    maps: Tensor,
    operators: Tensor,
    source: Tensor,
    where: ConvGeometry,
) -> None:
    """Fill the gradients of maps and operators, laid out like them, by that of the outputs, laid out like the maps."""
    if not maps.numel() or not grad.numel():
        to_maps.zero_()
        to_operators.zero_()
        return
    gains, (order, begin) = _laid_out(operators, maps), _users(source, maps, operators)
    _launch("gather_to_maps", (grad, gains, order, begin, to_maps), maps, operators, grad, where)
    _launch("gather_to_operators", (grad, maps, source, to_operators), maps, operators, grad, where)


def plan(
    name: str, maps: Sequence[int], operators: Sequence[int], out: Sequence[int], where: ConvGeometry, last: bool
) -> tuple[tuple[int, ...], int]:
    """A kernel's whole numbers and how many blocks run it, by the shapes of maps, operators and outputs."""
    (batch, channels, *size), (outputs, groups, taps), joined = maps, operators[:3], operators[2:]
    numbers = (batch, outputs, groups, channels // (groups * taps), *size, *out[2:], *where.numbers())
    if name == "gather_to_operators":
        gains = groups * math.prod(joined)
        team = next(team for team in (8, 4, 2, 1) if team == 1 or (last and -(-outputs // team) * gains >= _BLOCKS))
        return (team, *numbers), -(-outputs // team) * gains
    threads = math.prod(out if name == "gather" else maps)
    return numbers, -(-threads // _THREADS)


def macros(dtype: torch.dtype, *, last: bool, diagonal: bool, wide: bool) -> tuple[str, ...]:
    """What the kernels are compiled with for tensors of this kind."""
    flags = {"LAST": last, "DIAGONAL": diagonal, "WIDE": wide}
    return (_TYPES[dtype], *(name for name, holds in flags.items() if holds))


def _launch(
    name: str, tensors: tuple[Tensor, ...], maps: Tensor, operators: Tensor, out: Tensor, where: ConvGeometry
) -> None:
    last = not maps.is_contiguous()
    wide = max(maps.numel(), operators.numel(), out.numel()) >= _MANY or max(where.numbers()) >= _FAR
    numbers, grid = plan(name, maps.shape, operators.shape, out.shape, where, last)
    gpu.launch(
        "gather.cu",
        name,
        (*(tensor.data_ptr() for tensor in tensors), *map(np.int64 if wide else np.int32, numbers)),
        device=maps.device.index,
        grid=grid,
        block=_THREADS,
        macros=macros(maps.dtype, last=last, diagonal=operators.dim() == 3, wide=wide),
    )


def _laid_out(operators: Tensor, maps: Tensor) -> Tensor:
    """Operators as the kernels read them: outputs are the last dimension wherever channels are."""
    return operators if maps.is_contiguous() else operators.flatten(1).t().contiguous()


def _users(source: Tensor, maps: Tensor, operators: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs by their template, and where each of the M templates begins among them, M + 1 places."""
    templates = maps.shape[1] // (operators.shape[1] * operators.shape[2])
    ordered, order = source.sort(stable=True)
    return order, torch.searchsorted(ordered, torch.arange(templates + 1, device=source.device))


@cache
def is_available(device: int) -> bool:
    """Whether the CUDA kernels run on this GPU and give there what plain PyTorch gives; tried once."""
    if not gpu.installed():
        return False
    try:
        for dtype, last, diagonal in _TRIED:
            if not _agrees(torch.device("cuda", device), dtype, last, diagonal):
                raise RuntimeError("they give other values than plain PyTorch")
    except Exception as error:  # drivers and packages fail in many ways, and none need stop a training
        warnings.warn(f"Template convolutions on cuda:{device} go without our kernels: {error}", OvertoneWarning, 2)
        return False
    return True


def _agrees(device: torch.device, dtype: torch.dtype, last: bool, diagonal: bool) -> bool:
    """Whether kernels give plain PyTorch's values of small whole numbers, whose sums no order of adding changes."""
    where = ConvGeometry(kernel=(3, 2), stride=(2, 1), padding=(1, 1), dilation=(1, 2))
    maps = _whole_numbers(2, 2 * 6 * 3, 5, 4)
    maps = maps.contiguous(memory_format=torch.channels_last) if last else maps
    operators = _whole_numbers(5, 2, 6) if diagonal else _whole_numbers(5, 2, 6, 6)
    source = torch.tensor([2, 0, -1, 2, 3])
    out = gather_reference(maps, operators, source, where)
    grad = _whole_numbers(*out.shape)
    expected = (out, *gather_backward_reference(grad, maps, operators, source, where))
    layout = torch.channels_last if last else torch.contiguous_format
    grad, maps = (x.to(device, dtype).contiguous(memory_format=layout) for x in (grad, maps))
    operators, source = operators.to(device, dtype), source.to(device)
    found = torch.empty_like(grad), torch.empty_like(maps), torch.empty_like(operators)
    gather(found[0], maps, operators, source, where)
    gather_backward(found[1], found[2], grad, maps, operators, source, where)
    return all(torch.equal(x.cpu(), y.to(dtype)) for x, y in zip(found, expected, strict=True))


def _whole_numbers(*shape: int) -> Tensor:
    count = math.prod(shape)
    return (torch.arange(count) * 5 % 7 - 3).float().view(shape)
