"""A template convolution in one pass, for inference: the maps of stage one never reach memory.

Ours, beyond Miles & Mikolajczyk, whose two stages meet in memory. float32 and bfloat16 on the CPU have a kernel in C.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.errors import UsageError
from layers.templates import kernels
from layers.templates.reference import ConvGeometry

__all__ = ["FusedTemplates", "fused_conv2d"]


class FusedTemplates(NamedTuple):
    """What the pass reads: templates (G, M, C / G, K_y, K_x), operators (N, G, T) or (N, G, T, T), and their outputs.

    Template m makes the outputs `order[begin[m] : begin[m + 1]]`. bfloat16 templates have `pairs` too, two channels in
    an int32 (G, M, C / G / 2, T): products with bfloat16 inputs are then those of the processor.
    """

    templates: Tensor
    pairs: Tensor | None
    operators: Tensor
    order: Tensor
    begin: Tensor

    @classmethod
    def from_operators(cls, templates: Tensor, operators: Tensor, source: Tensor) -> "FusedTemplates":
        """Sort the outputs by their template, `source` (N,)."""
        order = source.argsort(stable=True)
        begin = torch.searchsorted(source[order], torch.arange(templates.shape[1] + 1, device=source.device))
        pairs = _pairs(templates) if templates.dtype == torch.bfloat16 else None
        return cls(templates.float().contiguous(), pairs, operators.float().contiguous(), order, begin)


def _pairs(templates: Tensor) -> Tensor:
    """Pack channels two by two, the first in the lower half; an odd last one is paired with zeros."""
    taps = F.pad(templates.flatten(3), (0, 0, 0, templates.shape[2] % 2))
    low, high = taps.view(torch.int16).int().unflatten(2, (-1, 2)).unbind(3)
    return ((low & 0xFFFF) | (high << 16)).contiguous()


def fused_conv2d(
    x: Tensor,
    fused: FusedTemplates,
    bias: Tensor | None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor | None:
    """Convolve (B, C, H, W) to (B, N, H_out, W_out); return `None` if gradients are needed or there is no kernel."""
    tensors = (x, fused.templates, fused.operators, *([] if bias is None else [bias]))
    geometry = _geometry(fused.templates, stride, padding, dilation)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return None
    if not kernels.can_convolve(x, geometry, mixes=fused.operators.dim() == 4):
        return None
    bias = None if bias is None else bias.float()
    return _template_conv(x, *fused, bias, list(stride), list(padding), list(dilation))


@torch.library.custom_op("overtone::template_conv", mutates_args=())
def _template_conv(
    x: Tensor,
    templates: Tensor,
    pairs: Tensor | None,
    operators: Tensor,
    order: Tensor,
    begin: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Convolve with the tensors of `FusedTemplates`; outputs are contiguous and of the inputs' type."""
    geometry = _geometry(templates, stride, padding, dilation)
    _check_args(x, templates, pairs, operators, order, begin, bias, geometry)
    out = x.new_empty(x.shape[0], len(operators), *geometry.size((x.shape[2], x.shape[3])))
    kernels.convolve(out, x.contiguous(), templates, pairs, operators, order, begin, bias, geometry)
    return out


@_template_conv.register_fake
def _(x: Tensor, templates: Tensor, pairs: Tensor | None, operators: Tensor, *rest: Any) -> Tensor:
    *_, stride, padding, dilation = rest
    size = _geometry(templates, stride, padding, dilation).size((x.shape[2], x.shape[3]))
    return x.new_empty(x.shape[0], len(operators), *size)


def _geometry(templates: Tensor, *pairs: Sequence[int]) -> ConvGeometry:
    return ConvGeometry((templates.shape[3], templates.shape[4]), *((y, x) for y, x in pairs))


def _check_args(
    x: Tensor,
    templates: Tensor,
    pairs: Tensor | None,
    operators: Tensor,
    order: Tensor,
    begin: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
) -> None:
    groups, count, depth, k_y, k_x = templates.shape
    outputs = len(operators)
    taps = k_y * k_x
    if not kernels.can_convolve(x, geometry, mixes=operators.dim() == 4):
        raise UsageError(
            f"x (={x.dtype} on {x.device}) must be float32 or bfloat16 on the CPU, with outputs amid their taps, of "
            "stride 1 if operators mix taps"
        )
    if x.dim() != 4 or x.shape[1] != groups * depth:
        raise UsageError(f"x (={tuple(x.shape)}) must be (B, {groups * depth}, H, W)")
    if operators.shape[1:] not in ((groups, taps), (groups, taps, taps)):
        raise UsageError(f"operators (={tuple(operators.shape)}) must be (N, {groups}, {taps}) or with {taps} twice")
    floats = [templates, operators, *([] if bias is None else [bias])]
    if any(value.dtype != torch.float32 or not value.is_contiguous() for value in floats):
        raise UsageError("templates, operators and bias must be contiguous float32 tensors")
    halves = (groups, count, (depth + 1) // 2, taps)
    if pairs is not None and (pairs.shape != halves or pairs.dtype != torch.int32 or not pairs.is_contiguous()):
        raise UsageError(f"pairs (={pairs.dtype} {tuple(pairs.shape)}) must be contiguous int32 {halves}")
    if bias is not None and bias.shape != (outputs,):
        raise UsageError(f"bias (={tuple(bias.shape)}) must be ({outputs},)")
    if order.shape != (outputs,) or begin.shape != (count + 1,) or {order.dtype, begin.dtype} != {torch.int64}:
        raise UsageError(f"order and begin must be int64 ({outputs},) and ({count + 1},)")
