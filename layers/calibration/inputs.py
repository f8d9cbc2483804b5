"""What a layer's stored values multiply, and the outputs wanted there: columns that moments are summed over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.conv import CompressedConv2d
from layers.linear import CompressedLinear

__all__ = ["ALL_PIXELS", "by_pixel", "chunks", "seen_by_filters", "sparse_steps"]

_CHUNK_VALUES = 1 << 24
"""Values held at a time: 64 MiB of float32."""
ALL_PIXELS = (1, 1)


def chunks(x: Tensor, outputs: Tensor, values: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut inputs and outputs (B, ...) into parts of so few images that `values` an image are not too many at a time."""
    step = max(1, _CHUNK_VALUES // max(values, 1))
    return zip(x.split(step), outputs.split(step), strict=True)


def by_pixel(x: Tensor) -> Tensor:
    """Reshape (B, c, H, W) to (c, B H W)."""
    return x.transpose(0, 1).flatten(1)


def sparse_steps(pixels: int, enough: int) -> tuple[int, int]:
    """Return every how many rows and columns of output pixels are taken, so that about enough of them are."""
    share = max(1, round(pixels / max(enough, 1)))
    return isqrt(share), round(share / isqrt(share))


def seen_by_filters(
    layer: CompressedConv2d | CompressedLinear,
    x: Tensor,
    outputs: Tensor,
    steps: tuple[int, int] = ALL_PIXELS,
    first: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what filters multiply, (C K_y K_x, pixels), and the outputs (N, pixels) that are wanted there.

    Inputs (B, C, H, W) are rounded as the layer does. Of outputs (B, N, H_out, W_out) only every so many rows and
    columns are taken; where these begin differs from image to image, so that all pixels are taken alike, and `first` is
    the number of the first image. Of a linear layer (B, ..., C) to (B, ..., N) rows are pixels.
    """
    every = steps[0] * steps[1]
    if isinstance(layer, CompressedLinear):
        seen, wanted = (t.reshape(-1, t.shape[-1])[first % every :: every].mT for t in (layer.rounded(x), outputs))
        yield seen, wanted
        return
    x = F.pad(layer.rounded(x), layer.margins, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    for offset in range(min(every, len(outputs))):
        begins = divmod((first + offset) % every, steps[1])
        wanted = outputs[offset::every, :, begins[0] :: steps[0], begins[1] :: steps[1]]
        if wanted.numel():
            yield _under_filters(layer, x[offset::every], begins, steps, wanted.shape[2:]), by_pixel(wanted)


def _under_filters(
    layer: CompressedConv2d, x: Tensor, begins: tuple[int, int], steps: tuple[int, int], size: Sequence[int]
) -> Tensor:
    """Return what filters see of padded inputs (b, C, H, W) at output pixels (h, w), a grid: (C K_y K_x, b h w)."""
    axes = zip(begins, steps, size, layer.strides, layer.dilations, layer.shape.kernel, strict=True)
    rows, columns = (
        [
            slice(start, start + (count - 1) * step * stride + 1, step * stride)
            for start in range(begin * stride, begin * stride + taps * dilation, dilation)
        ]
        for begin, step, count, stride, dilation, taps in axes
    )
    by_channel = x.transpose(0, 1)
    seen = torch.stack([by_channel[:, :, row, column] for row in rows for column in columns], 1)
    return seen.flatten(2).flatten(0, 1)
