"""The second stage of a template convolution in plain PyTorch, which says what its kernels compute."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ConvGeometry", "gather_reference", "gather_backward_reference"]


@dataclass(frozen=True)
class ConvGeometry:
    """Where a convolution's taps lie in its input; pairs are (y, x)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def size(self, inputs: tuple[int, int]) -> tuple[int, int]:
        """(H_out, W_out) of an input's (H, W)."""
        reach = [dilation * (k - 1) for k, dilation in zip(self.kernel, self.dilation, strict=True)]
        y, x = ((inputs[i] + 2 * self.padding[i] - reach[i] - 1) // self.stride[i] + 1 for i in (0, 1))
        return y, x

    def seen_by(self, tap: int, padded: Tensor) -> Tensor:
        """The values of padded maps (..., H, W) where this tap lies, (..., H_out, W_out), as a view."""
        places = []
        for i, place in enumerate(divmod(tap, self.kernel[1])):
            first, reach = place * self.dilation[i], self.dilation[i] * (self.kernel[i] - 1)
            places.append(slice(first, padded.shape[i - 2] - reach + first, self.stride[i]))
        return padded[..., places[0], places[1]]

    def numbers(self) -> tuple[int, ...]:
        """All of them, in the order of the fields."""
        return (*self.kernel, *self.stride, *self.padding, *self.dilation)

    @property
    def is_centered(self) -> bool:
        """Whether every place of the input, or every stride-th, is the middle of an output's taps."""
        reach = tuple(dilation * (k - 1) for k, dilation in zip(self.kernel, self.dilation, strict=True))
        return tuple(2 * pad for pad in self.padding) == reach


def gather_reference(maps: Tensor, operators: Tensor, source: Tensor, where: ConvGeometry) -> Tensor:
    """The definition, in float32 or float64."""
    maps, operators, chosen = _wide(maps, operators, source, where)
    out = maps.new_zeros(())
    for tap in range(operators.shape[2]):
        seen = where.seen_by(tap, maps)
        if operators.dim() == 3:
            out = out + torch.einsum("bgnhw,ng->bnhw", seen[:, :, tap, chosen], operators[:, :, tap])
        else:
            out = out + torch.einsum("bgknhw,ngk->bnhw", seen[:, :, :, chosen], operators[:, :, tap])
    return out


def gather_backward_reference(
    grad: Tensor, maps: Tensor, operators: Tensor, source: Tensor, where: ConvGeometry
) -> tuple[Tensor, Tensor]:
    """Gradients of the maps and of the operators, in float32 or float64."""
    size = maps.shape[2:]
    maps, operators, chosen = _wide(maps, operators, source, where)
    grad, to_maps, to_operators = grad.to(maps.dtype), torch.zeros_like(maps), torch.zeros_like(operators)
    for tap in range(operators.shape[2]):
        seen, back = where.seen_by(tap, maps), where.seen_by(tap, to_maps)
        if operators.dim() == 3:
            back[:, :, tap].index_add_(2, chosen, torch.einsum("bnhw,ng->bgnhw", grad, operators[:, :, tap]))
            to_operators[:, :, tap] = torch.einsum("bnhw,bgnhw->ng", grad, seen[:, :, tap, chosen])
        else:
            back.index_add_(3, chosen, torch.einsum("bnhw,ngk->bgknhw", grad, operators[:, :, tap]))
            to_operators[:, :, tap] = torch.einsum("bnhw,bgknhw->ngk", grad, seen[:, :, :, chosen])
    top, left = where.padding
    inner = to_maps[:, :, :, :-1, top : top + size[0], left : left + size[1]]
    return inner.flatten(1, 3), to_operators


def _wide(maps: Tensor, operators: Tensor, source: Tensor, where: ConvGeometry) -> tuple[Tensor, Tensor, Tensor]:
    """Padded maps (B, G, T, M + 1, H, W), whose last template is the one of zeros; operators; and who uses which."""
    dtype = torch.float64 if maps.dtype == torch.float64 else torch.float32
    groups, taps = operators.shape[1:3]
    maps = maps.to(dtype).unflatten(1, (groups, taps, -1))
    templates, (y, x) = maps.shape[3], where.padding
    chosen = source.where((source >= 0) & (source < templates), templates)
    return F.pad(maps, (x, x, y, y, 0, 1)), operators.to(dtype), chosen
