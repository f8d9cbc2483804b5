"""The second stage of a template convolution in plain PyTorch: the definition that its kernels must equal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ConvGeometry", "gather_backward_reference", "gather_reference"]


@dataclass(frozen=True)
class ConvGeometry:
    """Where a convolution's taps lie in its input; pairs are (y, x)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def size(self, inputs: tuple[int, int]) -> tuple[int, int]:
        """Return (H_out, W_out) of an input's (H, W)."""
        reach = [dilation * (k - 1) for k, dilation in zip(self.kernel, self.dilation, strict=True)]
        y, x = ((inputs[i] + 2 * self.padding[i] - reach[i] - 1) // self.stride[i] + 1 for i in (0, 1))
        return y, x

    def seen_by(self, tap: int, padded: Tensor) -> Tensor:
        """Return the values of padded maps (..., H, W) that this tap sees, (..., H_out, W_out), as a view."""
        slices = []
        for i, position in enumerate(divmod(tap, self.kernel[1])):
            first = position * self.dilation[i]
            reach = self.dilation[i] * (self.kernel[i] - 1)
            slices.append(slice(first, padded.shape[i - 2] - reach + first, self.stride[i]))
        return padded[..., slices[0], slices[1]]

    def numbers(self) -> tuple[int, ...]:
        """Return all numbers, in the order of the fields."""
        return (*self.kernel, *self.stride, *self.padding, *self.dilation)

    @property
    def is_centered(self) -> bool:
        """Whether every pixel of the input, or every stride-th, is the middle of an output's taps."""
        reach = tuple(dilation * (k - 1) for k, dilation in zip(self.kernel, self.dilation, strict=True))
        return tuple(2 * pad for pad in self.padding) == reach


def gather_reference(maps: Tensor, operators: Tensor, source: Tensor, geometry: ConvGeometry) -> Tensor:
    """Return the outputs (B, N, H_out, W_out), in float32 or float64, as `layers.templates.gather` defines them."""
    maps, operators, source = _widened(maps, operators, source, geometry)
    out = maps.new_zeros(())
    for tap in range(operators.shape[2]):
        seen = geometry.seen_by(tap, maps)
        if operators.dim() == 3:
            out = out + torch.einsum("bgnhw,ng->bnhw", seen[:, :, tap, source], operators[:, :, tap])
        else:
            out = out + torch.einsum("bgknhw,ngk->bnhw", seen[:, :, :, source], operators[:, :, tap])
    return out


def gather_backward_reference(
    grad: Tensor, maps: Tensor, operators: Tensor, source: Tensor, geometry: ConvGeometry
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the maps and of the operators, in float32 or float64."""
    size = maps.shape[2:]
    maps, operators, source = _widened(maps, operators, source, geometry)
    grad = grad.to(maps.dtype)
    to_maps = torch.zeros_like(maps)
    to_operators = torch.zeros_like(operators)
    for tap in range(operators.shape[2]):
        seen = geometry.seen_by(tap, maps)
        back = geometry.seen_by(tap, to_maps)
        if operators.dim() == 3:
            back[:, :, tap].index_add_(2, source, torch.einsum("bnhw,ng->bgnhw", grad, operators[:, :, tap]))
            to_operators[:, :, tap] = torch.einsum("bnhw,bgnhw->ng", grad, seen[:, :, tap, source])
        else:
            back.index_add_(3, source, torch.einsum("bnhw,ngk->bgknhw", grad, operators[:, :, tap]))
            to_operators[:, :, tap] = torch.einsum("bnhw,bgknhw->ngk", grad, seen[:, :, :, source])
    top, left = geometry.padding
    inner = to_maps[:, :, :, :-1, top : top + size[0], left : left + size[1]]
    return inner.flatten(1, 3), to_operators


def _widened(maps: Tensor, operators: Tensor, source: Tensor, geometry: ConvGeometry) -> tuple[Tensor, Tensor, Tensor]:
    """Return padded maps (B, G, T, M + 1, H, W), the last of them zero, the operators, and each output's template."""
    dtype = torch.float64 if maps.dtype == torch.float64 else torch.float32
    groups, taps = operators.shape[1:3]
    maps = maps.to(dtype).unflatten(1, (groups, taps, -1))
    templates = maps.shape[3]
    y, x = geometry.padding
    source = source.where((source >= 0) & (source < templates), templates)
    return F.pad(maps, (x, x, y, y, 0, 1)), operators.to(dtype), source
