"""The multiply-accumulates of any code: by PyTorch's formulas and ours, and the operators that neither knows.

Convolutions and products of matrices and vectors count. Operators that go through values one by one (norms,
activations, products element by element, pooling, resampling) or only move them (embeddings, copies) do not. Any other
operator of two tensors of numbers or more is named, as are Fourier transforms, the solvers of linear algebra, and
operators from outside of PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

__all__ = ["ProductCounter"]


class ProductCounter:
    """Counts what runs inside the `with` block, and notes the operators that it cannot count."""

    def __init__(self) -> None:
        self._uncounted = _Uncounted()
        self._counter = FlopCounterMode(display=False, custom_mapping=_formulas())
        self._uncounted.counted = set(self._counter.flop_registry)

    @property
    def macs(self) -> int:
        """Multiply-accumulates so far."""
        return self._counter.get_total_flops() // 2

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Names of operators that multiply, or may, and have no formula, in the order of their first call."""
        return tuple(self._uncounted.names)

    def __enter__(self) -> Self:
        self._uncounted.__enter__()
        self._counter.__enter__()  # the inner one: it takes composite operators apart
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._counter.__exit__(kind, error, trace)
        self._uncounted.__exit__(kind, error, trace)


def _formulas() -> dict[Any, Callable[..., int]]:
    """Return the FLOPs, two a multiply-accumulate, of operators that PyTorch's counter leaves out.

    Their arguments are those of the operator, shapes in the place of tensors.
    """
    aten = torch.ops.aten
    formulas: dict[Any, Callable[..., int]] = {
        aten.mv: lambda matrix, vector, **_: 2 * prod(matrix),
        aten.addmv: lambda start, matrix, vector, *_, **__: 2 * prod(matrix),
        aten.dot: lambda one, other, **_: 2 * prod(one),
        aten.vdot: lambda one, other, **_: 2 * prod(one),
        aten.addr: lambda start, one, other, *_, **__: 2 * prod(one) * prod(other),
        aten.addbmm: lambda start, one, other, *_, **__: 2 * prod(one) * other[-1],
        aten._addmm_activation: lambda start, one, other, *_, **__: 2 * prod(one) * other[-1],
        aten.conv_tbc: lambda x, weight, *_, out_shape, **__: 2 * prod(out_shape) * prod(weight[:2]),
        aten._trilinear: lambda one, weight, other, *_, **__: 2 * one[0] * prod(weight),
        aten._cdist_forward: lambda one, other, *_, out_shape, **__: 2 * prod(out_shape) * one[-1],
        aten._euclidean_dist: lambda one, other, *_, out_shape, **__: 2 * prod(out_shape) * one[-1],
        aten._pdist_forward: lambda one, *_, out_shape, **__: 2 * prod(out_shape) * one[-1],
        aten.mkldnn_rnn_layer: lambda x, inner, outer, *_, **__: 2 * prod(x[:-1]) * (prod(inner) + prod(outer)),
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    }
    if hasattr(torch.ops.torchvision, "deform_conv2d"):
        formulas[torch.ops.torchvision.deform_conv2d] = _deformable_flops
    return formulas


def _deformable_flops(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return 2 * prod(out_shape) * prod(weight[1:])


class _Uncounted(TorchDispatchMode):
    """Notes operators that no formula knows and that may multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, None] = {}
        self.counted: set[Any] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func._overloadpacket not in self.counted and _may_multiply(func, args, kwargs or {}):
            self.names[str(func._overloadpacket)] = None
        return func(*args, **(kwargs or {}))


def _may_multiply(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    numbers = [
        value
        for value in tree_leaves((args, kwargs))
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
    ]
    if not numbers or torch.Tag.pointwise in func.tags or torch.Tag.nondeterministic_seeded in func.tags:
        return False
    namespace, name = func._schema.name.split("::")
    name = name.strip("_")
    if namespace not in ("aten", "prim", "prims"):
        return f"{namespace}::{name}" not in _RESAMPLING
    if any(part in name for part in _FREE):
        return False
    return len(numbers) > 1 or name.startswith(_TRANSFORMS)


_TRANSFORMS = ("fft_", "linalg_", "matrix_exp", "cholesky", "lu_", "inverse", "stft", "istft")
"""Beginnings of the names of ATen operators that multiply a single tensor."""

_FREE = (
    *("norm", "prelu", "embedding", "grid_sampler", "upsample", "pool", "check_errors"),
    *("cat", "stack", "block_diag", "copy", "fill", "put", "index", "scatter", "where", "set", "complex", "polar"),
    *("equal", "close", "search", "loss", "foreach"),
)
"""Parts of the names of ATen operators that take several tensors and count nothing."""

_RESAMPLING = tuple(f"torchvision::{name}" for name in ("nms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"))
