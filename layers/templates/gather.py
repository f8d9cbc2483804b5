"""The second stage of a template convolution: each output joins its template's maps, tap by tap.

Miles & Mikolajczyk, "Reconstructing Pruned Filters using Cheap Spatial Transformations", eqs. 3 and 4. Stage one is a
pointwise convolution; its map (g, k, m) is tap k of template m in group g at every place of the input. Then

    y[n](p) = sum over g and taps k', k of S[n, g, k', k] z[g, k, source[n]](p stride + k' dilation - padding),

where maps are zero outside the input. Operators S of gains alone are diagonal and are given as (N, G, T). The op
`overtone::template_gather` is defined by plain PyTorch (`layers.templates.reference`); contiguous maps on the CPU have
a C kernel, those on GPUs CUDA kernels (`layers.templates.kernels`). Half types are added up in float32. Its backward is
an op too.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from layers.errors import UsageError
from layers.templates import kernels
from layers.templates.reference import ConvGeometry, gather_backward_reference, gather_reference

__all__ = ["template_gather"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@torch.library.custom_op("overtone::template_gather", mutates_args=())
def template_gather(
    maps: Tensor,
    operators: Tensor,
    source: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Outputs (B, N, H_out, W_out) of maps (B, G T M, H, W), contiguous or channels_last like them.

    Operators are (N, G, T), diagonal, or (N, G, T, T), of the maps' type, T = K_y K_x; `source` (N,) int64 says which
    of the M templates an output is made from, and one that does not exist is all zeros. Float16, bfloat16, float32 or
    float64. Raises `UsageError` for anything else.
    """
    where = _check_args(maps, operators, source, kernel, stride, padding, dilation)
    maps, operators, source = _laid_out(maps), operators.contiguous(), source.contiguous()
    out = _blank(maps, _output(maps, operators, where))
    if not kernels.gather(out, maps, operators, source, where):
        out.copy_(gather_reference(maps, operators, source, where))
    return out


@torch.library.custom_op("overtone::template_gather_backward", mutates_args=())
def _backward(
    grad: Tensor,
    maps: Tensor,
    operators: Tensor,
    source: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Gradients of the maps and of the operators, laid out like them."""
    where = _check_args(maps, operators, source, kernel, stride, padding, dilation)
    expected = _output(maps, operators, where)
    if grad.shape != expected or grad.dtype != maps.dtype or grad.device != maps.device:
        raise UsageError(f"grad (={_said(grad)}) must be {maps.dtype} {tuple(expected)} on {maps.device}.")
    maps, operators, source = _laid_out(maps), operators.contiguous(), source.contiguous()
    grad = grad.contiguous(memory_format=_format(maps))
    found = torch.empty_like(maps, memory_format=_format(maps)), torch.empty_like(operators)
    if not kernels.gather_backward(*found, grad, maps, operators, source, where):
        for out, value in zip(found, gather_backward_reference(grad, maps, operators, source, where), strict=True):
            out.copy_(value)
    return found


@template_gather.register_fake
def _(
    maps: Tensor,
    operators: Tensor,
    source: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    where = _check_args(maps, operators, source, kernel, stride, padding, dilation)
    return _blank(maps, _output(maps, operators, where))


@_backward.register_fake
def _(grad: Tensor, maps: Tensor, operators: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(maps, memory_format=_format(maps)), operators.new_empty(operators.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.where = inputs[3:]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    maps, operators = torch.ops.overtone.template_gather_backward(grad, *ctx.saved_tensors, *ctx.where)
    return maps, operators, None, None, None, None, None


template_gather.register_autograd(_differentiate, setup_context=_save)


def _check_args(
    maps: Tensor,
    operators: Tensor,
    source: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> ConvGeometry:
    """What every kernel takes; the places that it is about."""
    for name, values, least in (("kernel", kernel, 1), ("stride", stride, 1), ("padding", padding, 0)):
        _check_pair(name, values, least)
    _check_pair("dilation", dilation, 1)
    taps = kernel[0] * kernel[1]
    if maps.dim() != 4 or maps.dtype not in _DTYPES:
        raise UsageError(f"maps (={_said(maps)}) must be (B, G T M, H, W), float16, bfloat16, float32 or float64.")
    if operators.dim() not in (3, 4) or any(size != taps for size in operators.shape[2:]):
        raise UsageError(f"operators (={_said(operators)}) must be (N, G, {taps}) or (N, G, {taps}, {taps}).")
    if operators.dtype != maps.dtype or operators.device != maps.device:
        raise UsageError(f"operators (={_said(operators)}) must be {maps.dtype} on {maps.device} like the maps.")
    if source.shape != operators.shape[:1] or source.dtype != torch.int64 or source.device != maps.device:
        raise UsageError(f"source (={_said(source)}) must be int64 ({len(operators)},) on {maps.device}.")
    groups = operators.shape[1]
    if groups < 1 or maps.shape[1] % (groups * taps):
        raise UsageError(f"maps (={_said(maps)}) must have a multiple of {groups} groups x {taps} taps of channels.")
    where = ConvGeometry(*((y, x) for y, x in (kernel, stride, padding, dilation)))
    if min(_output(maps, operators, where)[2:]) < 1:
        raise UsageError(f"maps (={_said(maps)}) are smaller than the kernel of {where}.")
    return where


def _check_pair(name: str, values: Sequence[int], least: int) -> None:
    if len(values) != 2 or min(values) < least:
        raise UsageError(f"{name} (={list(values)}) must be two whole numbers, {least} or more.")


def _said(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"


def _format(maps: Tensor) -> torch.memory_format:
    """The layout that maps are used in, and outputs given in."""
    last = maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _output(maps: Tensor, operators: Tensor, where: ConvGeometry) -> torch.Size:
    return torch.Size([maps.shape[0], operators.shape[0], *where.size((maps.shape[2], maps.shape[3]))])


def _blank(maps: Tensor, shape: torch.Size) -> Tensor:
    return torch.empty(shape, dtype=maps.dtype, device=maps.device, memory_format=_format(maps))


def _laid_out(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=_format(maps))
