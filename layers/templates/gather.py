"""The second stage of a template convolution: each output joins its template's maps, tap by tap.

Miles & Mikolajczyk, "Reconstructing Pruned Filters using Cheap Spatial Transformations", eqs. 3 and 4. Stage one is a
pointwise convolution; its map (g, k, m) is tap k of template m in group g at every pixel of the input. Then

    y[n](p) = sum over g and taps k', k of S[n, g, k', k] z[g, k, source[n]](p stride + k' dilation - padding),

with maps that are zero outside the input. The operators S of gains are diagonal and are given as (N, G, T). The op
`overtone::template_gather` is defined by plain PyTorch (`layers.templates.reference`); contiguous maps on the CPU have
a C kernel, maps on GPUs have CUDA kernels (`layers.templates.kernels`). Half types are added up in float32. Its
backward is an op too.
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
    """Gather the outputs (B, N, H_out, W_out) from maps (B, G T M, H, W); contiguous or channels_last like them.

    Operators are (N, G, T), diagonal, or (N, G, T, T), of the maps' type, T = K_y K_x. `source` (N,) int64 says from
    which of the M templates an output is made; one that does not exist is all zeros. Float16, bfloat16, float32 or
    float64. Raises `UsageError` for anything else.
    """
    geometry = _check_args(maps, operators, source, kernel, stride, padding, dilation)
    maps, operators, source = _in_layout(maps), operators.contiguous(), source.contiguous()
    out = _empty_like(maps, _output_shape(maps, operators, geometry))
    if not kernels.gather(out, maps, operators, source, geometry):
        out.copy_(gather_reference(maps, operators, source, geometry))
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
    """Return the gradients of the maps and of the operators, laid out like them."""
    geometry = _check_args(maps, operators, source, kernel, stride, padding, dilation)
    expected = _output_shape(maps, operators, geometry)
    if grad.shape != expected or grad.dtype != maps.dtype or grad.device != maps.device:
        raise UsageError(f"grad (={_described(grad)}) must be {maps.dtype} {tuple(expected)} on {maps.device}")
    maps, operators, source = _in_layout(maps), operators.contiguous(), source.contiguous()
    grad = grad.contiguous(memory_format=_layout(maps))
    to_maps = torch.empty_like(maps, memory_format=_layout(maps))
    to_operators = torch.empty_like(operators)
    if not kernels.gather_backward(to_maps, to_operators, grad, maps, operators, source, geometry):
        gradients = gather_backward_reference(grad, maps, operators, source, geometry)
        to_maps.copy_(gradients[0])
        to_operators.copy_(gradients[1])
    return to_maps, to_operators


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
    geometry = _check_args(maps, operators, source, kernel, stride, padding, dilation)
    return _empty_like(maps, _output_shape(maps, operators, geometry))


@_backward.register_fake
def _(grad: Tensor, maps: Tensor, operators: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(maps, memory_format=_layout(maps)), operators.new_empty(operators.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.geometry = inputs[3:]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    maps, operators = torch.ops.overtone.template_gather_backward(grad, *ctx.saved_tensors, *ctx.geometry)
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
    """Return the convolution's geometry; raise `UsageError` if no kernel takes these arguments."""
    for name, values, least in (("kernel", kernel, 1), ("stride", stride, 1), ("padding", padding, 0)):
        _check_pair(name, values, least)
    _check_pair("dilation", dilation, 1)
    taps = kernel[0] * kernel[1]
    if maps.dim() != 4 or maps.dtype not in _DTYPES:
        raise UsageError(f"maps (={_described(maps)}) must be (B, G T M, H, W), float16, bfloat16, float32 or float64")
    if operators.dim() not in (3, 4) or any(size != taps for size in operators.shape[2:]):
        raise UsageError(f"operators (={_described(operators)}) must be (N, G, {taps}) or (N, G, {taps}, {taps})")
    if operators.dtype != maps.dtype or operators.device != maps.device:
        raise UsageError(f"operators (={_described(operators)}) must be {maps.dtype} on {maps.device} like the maps")
    if source.shape != operators.shape[:1] or source.dtype != torch.int64 or source.device != maps.device:
        raise UsageError(f"source (={_described(source)}) must be int64 ({len(operators)},) on {maps.device}")
    groups = operators.shape[1]
    if groups < 1 or maps.shape[1] % (groups * taps):
        raise UsageError(
            f"maps (={_described(maps)}) must have a multiple of {groups} groups x {taps} taps of channels"
        )
    geometry = ConvGeometry(*((y, x) for y, x in (kernel, stride, padding, dilation)))
    if min(_output_shape(maps, operators, geometry)[2:]) < 1:
        raise UsageError(f"maps (={_described(maps)}) must be at least as large as the kernel of {geometry}")
    return geometry


def _check_pair(name: str, values: Sequence[int], least: int) -> None:
    if len(values) != 2 or min(values) < least:
        raise UsageError(f"{name} (={list(values)}) must be two whole numbers, {least} or more")


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"


def _layout(maps: Tensor) -> torch.memory_format:
    """Return the layout in which maps are read and outputs returned."""
    last = maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _output_shape(maps: Tensor, operators: Tensor, geometry: ConvGeometry) -> torch.Size:
    return torch.Size([maps.shape[0], operators.shape[0], *geometry.size((maps.shape[2], maps.shape[3]))])


def _empty_like(maps: Tensor, shape: torch.Size) -> Tensor:
    return torch.empty(shape, dtype=maps.dtype, device=maps.device, memory_format=_layout(maps))


def _in_layout(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=_layout(maps))
