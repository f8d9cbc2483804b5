"""Kernels of template convolutions: in C for CPUs (`layers.kernels.cpu`), in CUDA for GPUs (`layers.kernels.gpu`)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from layers.errors import OvertoneError, UsageError
from layers.kernels import cpu
from layers.templates import cuda
from layers.templates.reference import ConvGeometry

__all__ = ["can_convolve", "convolve", "gather", "gather_backward"]


def gather(out: Tensor, maps: Tensor, operators: Tensor, source: Tensor, geometry: ConvGeometry) -> bool:
    """Fill `out` as `layers.templates.gather` defines it; return false if there is no kernel for these tensors."""
    if _is_for_gpu(out):
        cuda.gather(out, maps, operators, source, geometry)
        return True
    if _is_half_on_cpu(out):
        wide = torch.empty_like(out, dtype=torch.float32)
        done = gather(wide, maps.float(), operators.float(), source, geometry)
        out.copy_(wide)
        return done
    library = cpu.library("gather.c", mirror=_Gather)
    if library is None or not _is_supported(out, maps, operators):
        return False
    arguments = _gather_arguments(maps, operators, source, out.shape, geometry)
    arguments.y = out.data_ptr()
    library.gather(ctypes.byref(arguments), torch.get_num_threads())
    return True


def gather_backward(
    to_maps: Tensor,
    to_operators: Tensor,
    grad: Tensor,
    maps: Tensor,
    operators: Tensor,
    source: Tensor,
    geometry: ConvGeometry,
) -> bool:
    """Fill both gradients; return false if there is no kernel for these tensors."""
    if _is_for_gpu(grad):
        cuda.gather_backward(to_maps, to_operators, grad, maps, operators, source, geometry)
        return True
    if _is_half_on_cpu(grad):
        wide, other = (torch.empty_like(out, dtype=torch.float32) for out in (to_maps, to_operators))
        done = gather_backward(wide, other, grad.float(), maps.float(), operators.float(), source, geometry)
        to_maps.copy_(wide)
        to_operators.copy_(other)
        return done
    library = cpu.library("gather.c", mirror=_Gather)
    if library is None or not _is_supported(to_maps, to_operators, grad, maps, operators):
        return False
    arguments = _gather_arguments(maps, operators, source, grad.shape, geometry)
    arguments.grad = grad.data_ptr()
    arguments.to_maps = to_maps.data_ptr()
    arguments.to_operators = to_operators.data_ptr()
    library.gather_backward(ctypes.byref(arguments), torch.get_num_threads())
    return True


def can_convolve(x: Tensor, geometry: ConvGeometry, *, mixes: bool) -> bool:
    """Return whether `convolve` takes inputs like this one; operators that mix taps need stride 1."""
    is_supported = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and geometry.is_centered
    if not is_supported or (mixes and geometry.stride != (1, 1)):
        return False
    return cpu.library("fused.c", mirror=_Convolution) is not None


def convolve(
    out: Tensor,
    x: Tensor,
    templates: Tensor,
    pairs: Tensor | None,
    operators: Tensor,
    order: Tensor,
    begin: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
) -> None:
    """Fill `out` (B, N, H_out, W_out) with the template convolution of x (B, C, H, W) in one pass; all contiguous.

    x and `out` are float32 or bfloat16, the rest is float32. Templates are (G, M, C / G, K_y, K_x), operators
    (N, G, T) or (N, G, T, T), bias (N,); template m makes the outputs `order[begin[m] : begin[m + 1]]`. `pairs` are the
    templates as bfloat16, two channels in one int32 (G, M, C / G / 2, T), for processors with products of bfloat16.
    Raises `OvertoneError` if memory is short.
    """
    library = cpu.library("fused.c", mirror=_Convolution)
    assert library is not None
    arguments = _Convolution(
        x=x.data_ptr(),
        templates=templates.data_ptr(),
        operators=operators.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
        pairs=None if pairs is None else pairs.data_ptr(),
        order=order.data_ptr(),
        begin=begin.data_ptr(),
        y=out.data_ptr(),
        batch=x.shape[0],
        channels=x.shape[1],
        height=out.shape[2],
        width=out.shape[3],
        input_size=tuple(x.shape[2:]),
        stride=geometry.stride,
        outputs=len(operators),
        groups=templates.shape[0],
        count=templates.shape[1],
        kernel=geometry.kernel,
        dilation=geometry.dilation,
        full=operators.dim() == 4,
        half=x.dtype == torch.bfloat16,
    )
    done = library.template_conv(ctypes.byref(arguments), torch.get_num_threads()) if out.numel() else 1
    if done < 0:
        raise UsageError(f"order and begin must give {len(operators)} outputs to {templates.shape[1]} templates")
    if not done:
        raise OvertoneError(f"cannot convolve {tuple(x.shape)} with templates: no memory left")


_Pair = ctypes.c_int64 * 2


class _Gather(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("maps", "operators", "grad", "source", "y", "to_maps", "to_operators")),
        *((name, ctypes.c_int64) for name in ("batch", "outputs", "groups", "templates", "full")),
        *((name, ctypes.c_int64) for name in ("height", "width", "height_out", "width_out")),
        *((name, _Pair) for name in ("kernel", "stride", "padding", "dilation")),
    )


class _Convolution(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "templates", "operators", "bias", "pairs", "order", "begin", "y")),
        *((name, ctypes.c_int64) for name in ("batch", "channels", "height", "width", "outputs", "groups", "count")),
        *((name, _Pair) for name in ("input_size", "kernel", "stride", "dilation")),
        *((name, ctypes.c_int64) for name in ("full", "half")),
    )


def _gather_arguments(
    maps: Tensor, operators: Tensor, source: Tensor, out: torch.Size, geometry: ConvGeometry
) -> _Gather:
    groups, taps = operators.shape[1:3]
    return _Gather(
        maps=maps.data_ptr(),
        operators=operators.data_ptr(),
        source=source.data_ptr(),
        batch=maps.shape[0],
        outputs=len(operators),
        groups=groups,
        templates=maps.shape[1] // (groups * taps),
        full=operators.dim() == 4,
        height=maps.shape[2],
        width=maps.shape[3],
        height_out=out[2],
        width_out=out[3],
        kernel=geometry.kernel,
        stride=geometry.stride,
        padding=geometry.padding,
        dilation=geometry.dilation,
    )


def _is_for_gpu(tensor: Tensor) -> bool:
    is_supported = tensor.device.type == "cuda" and tensor.dtype != torch.float64
    return is_supported and cuda.is_available(tensor.device.index)


def _is_half_on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in (torch.float16, torch.bfloat16)


def _is_supported(*tensors: Tensor) -> bool:
    are_float32 = all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
    return are_float32 and all(tensor.is_contiguous() for tensor in tensors)
