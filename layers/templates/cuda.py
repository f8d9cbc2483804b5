"""The CUDA kernels of template convolutions, `gather.cu`; `layers.templates.reference` defines their values."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from layers.errors import OvertoneWarning, first_line
from layers.kernels import gpu
from layers.templates.reference import ConvGeometry, gather_backward_reference, gather_reference

__all__ = ["gather", "gather_backward", "is_available", "macros", "plan"]

_THREADS = 256
_BLOCKS = 512
"""Blocks that keep a GPU busy."""
_WIDE_VALUES = 1 << 30
"""Values of a tensor that is indexed in 64 bits."""
_WIDE_GEOMETRY = 1 << 28
"""Padding, stride or dilation for which it is, too."""
_TYPES = {torch.float32: "FLOAT32", torch.float16: "FLOAT16", torch.bfloat16: "BFLOAT16"}
_TRIALS = ((torch.float32, False, True), (torch.float16, True, False), (torch.bfloat16, True, True))
"""What a GPU is tried with: types, whether channels are last, and whether operators are diagonal."""


def gather(out: Tensor, maps: Tensor, operators: Tensor, source: Tensor, geometry: ConvGeometry) -> None:
    """Fill `out`, laid out like the maps; all are on one GPU, float16, bfloat16 or float32."""
    if not maps.numel() or not out.numel():
        out.zero_()
        return
    gains = _in_layout(operators, maps)
    _launch("gather", (maps, gains, source, out), maps, operators, out, geometry)


def gather_backward(
    to_maps: Tensor,
    to_operators: Tensor,
    grad: Tensor,
    maps: Tensor,
    operators: Tensor,
    source: Tensor,
    geometry: ConvGeometry,
) -> None:
    """Fill the gradients of maps and operators, laid out like them; that of the outputs is laid out like the maps."""
    if not maps.numel() or not grad.numel():
        to_maps.zero_()
        to_operators.zero_()
        return
    gains = _in_layout(operators, maps)
    order, begin = _outputs_by_template(source, maps, operators)
    _launch("gather_to_maps", (grad, gains, order, begin, to_maps), maps, operators, grad, geometry)
    _launch("gather_to_operators", (grad, maps, source, to_operators), maps, operators, grad, geometry)


def plan(
    name: str, maps: Sequence[int], operators: Sequence[int], out: Sequence[int], geometry: ConvGeometry, last: bool
) -> tuple[tuple[int, ...], int]:
    """Return a kernel's whole numbers and how many blocks run it, by the shapes of maps, operators and outputs."""
    batch, channels, *size = maps
    outputs, groups, taps = operators[:3]
    joined = operators[2:]
    numbers = (batch, outputs, groups, channels // (groups * taps), *size, *out[2:], *geometry.numbers())
    if name == "gather_to_operators":
        gains = groups * math.prod(joined)
        team = next(team for team in (8, 4, 2, 1) if team == 1 or (last and -(-outputs // team) * gains >= _BLOCKS))
        return (team, *numbers), -(-outputs // team) * gains
    threads = math.prod(out if name == "gather" else maps)
    return numbers, -(-threads // _THREADS)


def macros(dtype: torch.dtype, *, last: bool, diagonal: bool, wide: bool) -> tuple[str, ...]:
    """Return the macros with which the kernels are compiled for tensors of this kind."""
    flags = {"LAST": last, "DIAGONAL": diagonal, "WIDE": wide}
    return (_TYPES[dtype], *(name for name, holds in flags.items() if holds))


def _launch(
    name: str, tensors: tuple[Tensor, ...], maps: Tensor, operators: Tensor, out: Tensor, geometry: ConvGeometry
) -> None:
    last = not maps.is_contiguous()
    values = max(maps.numel(), operators.numel(), out.numel())
    wide = values >= _WIDE_VALUES or max(geometry.numbers()) >= _WIDE_GEOMETRY
    numbers, grid = plan(name, maps.shape, operators.shape, out.shape, geometry, last)
    gpu.launch(
        "gather.cu",
        name,
        (*(tensor.data_ptr() for tensor in tensors), *map(np.int64 if wide else np.int32, numbers)),
        device=maps.device.index,
        grid=grid,
        block=_THREADS,
        macros=macros(maps.dtype, last=last, diagonal=operators.dim() == 3, wide=wide),
    )


def _in_layout(operators: Tensor, maps: Tensor) -> Tensor:
    """Return the operators as the kernels read them: if channels are last, outputs are the last dimension."""
    return operators if maps.is_contiguous() else operators.flatten(1).t().contiguous()


def _outputs_by_template(source: Tensor, maps: Tensor, operators: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs sorted by template, (N,), and where each template's begin and the last one's end, (M + 1,)."""
    templates = maps.shape[1] // (operators.shape[1] * operators.shape[2])
    ordered, order = source.sort(stable=True)
    return order, torch.searchsorted(ordered, torch.arange(templates + 1, device=source.device))


@cache
def is_available(device: int) -> bool:
    """Return whether the CUDA kernels run on this GPU and give plain PyTorch's values; tried once, warns if not."""
    if not gpu.installed():
        return False
    try:
        for dtype, last, diagonal in _TRIALS:
            if not _agrees(torch.device("cuda", device), dtype, last, diagonal):
                raise RuntimeError("their values are not those of plain PyTorch")
    except Exception as error:  # drivers and packages fail in many ways, and none need stop a training
        message = f"template convolutions on cuda:{device} do not use our kernels: {first_line(error)}"
        warnings.warn(message, OvertoneWarning, stacklevel=2)
        return False
    return True


def _agrees(device: torch.device, dtype: torch.dtype, last: bool, diagonal: bool) -> bool:
    """Return whether kernels give plain PyTorch's values for small whole numbers, whose sums no order changes."""
    geometry = ConvGeometry(kernel=(3, 2), stride=(2, 1), padding=(1, 1), dilation=(1, 2))
    maps = _whole_numbers(2, 2 * 6 * 3, 5, 4)
    maps = maps.contiguous(memory_format=torch.channels_last) if last else maps
    operators = _whole_numbers(5, 2, 6) if diagonal else _whole_numbers(5, 2, 6, 6)
    source = torch.tensor([2, 0, -1, 2, 3])
    out = gather_reference(maps, operators, source, geometry)
    grad = _whole_numbers(*out.shape)
    expected = (out, *gather_backward_reference(grad, maps, operators, source, geometry))
    layout = torch.channels_last if last else torch.contiguous_format
    grad, maps = (x.to(device, dtype).contiguous(memory_format=layout) for x in (grad, maps))
    operators, source = operators.to(device, dtype), source.to(device)
    actual = (torch.empty_like(grad), torch.empty_like(maps), torch.empty_like(operators))
    gather(actual[0], maps, operators, source, geometry)
    gather_backward(actual[1], actual[2], grad, maps, operators, source, geometry)
    return all(torch.equal(x.cpu(), y.to(dtype)) for x, y in zip(actual, expected, strict=True))


def _whole_numbers(*shape: int) -> Tensor:
    count = math.prod(shape)
    return (torch.arange(count) * 5 % 7 - 3).float().view(shape)
