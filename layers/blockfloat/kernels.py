"""The kernels of block floating point, in C (`layers.kernels.cpu`) and in CUDA (`layers.kernels.gpu`).

Without a compiler or, on a GPU, the package `cuda-core`, plain PyTorch gives the same bits.
"""

from __future__ import annotations

import ctypes
import itertools
import warnings
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from layers.blockfloat.format import BlockFormat
from layers.blockfloat.reference import round_reference
from layers.errors import OvertoneWarning, first_line
from layers.kernels import cpu, gpu

__all__ = ["cuda_launch", "is_available", "is_supported", "kernel", "round_into"]

_MACROS: dict[torch.dtype, tuple[str, ...]] = {torch.float32: (), torch.bfloat16: ("BFLOAT16",)}
"""The macros with which the kernels' sources are compiled, by type of the tensor."""
_THREADS = 256
_AHEAD = 4
"""Values of each thread in `blockfloat.cu`."""


def is_supported(x: Tensor) -> bool:
    """Return whether a kernel can round this tensor: float32 or bfloat16, on the CPU or a CUDA GPU, not traced."""
    if torch.compiler.is_compiling() or type(x) not in (Tensor, nn.Parameter) or x.dtype not in _MACROS:
        return False
    if torch._C._get_tracing_state() is not None:
        return False
    if x.device.type == "cpu":
        return kernel(x.dtype) is not None
    return x.device.type == "cuda" and is_available(x.device.index)


def round_into(out: Tensor, x: Tensor, form: BlockFormat) -> None:
    """Fill `out` with `x` rounded to nearest even; both contiguous, of one shape and type, and not overlapping."""
    if x.device.type == "cuda":
        _launch(out, x, form)
        return
    library = kernel(x.dtype)
    assert library is not None
    tensors = (x.data_ptr(), out.data_ptr())
    library.round_blocks(*tensors, *form.runs(x.shape), form.block, form.bits, form.lowest, torch.get_num_threads())


def cuda_launch(shape: Sequence[int], form: BlockFormat) -> tuple[str, tuple[int, ...], int]:
    """Return how a GPU rounds a tensor of this shape: the kernel's name, its whole numbers, and its threads."""
    rows, length, inner = form.runs(shape)
    widths = (form.bits, form.lowest)
    blocks = rows * -(-length // form.block) * inner
    if form.block == 1:
        return "single_values", (blocks, *widths), -(-blocks // _AHEAD)
    if inner > 1:
        return "many_blocks", (rows, length, inner, form.block, *widths), blocks
    lanes = 1 << (-(-form.block // _AHEAD) - 1).bit_length()
    return "rows_of_blocks", (rows, length, form.block, lanes, *widths), blocks * lanes


def _launch(out: Tensor, x: Tensor, form: BlockFormat) -> None:
    if not x.numel():
        return
    wide = x.numel() >= 1 << 30
    name, numbers, threads = cuda_launch(x.shape, form)
    gpu.launch(
        "blockfloat.cu",
        name,
        (x.data_ptr(), out.data_ptr(), *map(np.int64 if wide else np.int32, numbers)),
        device=x.device.index,
        grid=-(-threads // _THREADS),
        block=_THREADS,
        macros=(*_MACROS[x.dtype], *(("WIDE",) if wide else ())),
    )


@cache
def is_available(device: int) -> bool:
    """Return whether the CUDA kernels run on this GPU and give plain PyTorch's bits; tried once, warns if not."""
    if not gpu.installed():
        return False
    values = torch.linspace(-3, 5, 2 * 37 * 3, device=f"cuda:{device}").exp().view(2, 37, 3)
    forms = (
        *(BlockFormat(bits=5, block=block) for block in (1, 8)),
        BlockFormat(bits=5, block=8, axis="channel"),
    )
    try:
        for dtype, form in itertools.product(_MACROS, forms):
            x = values.to(dtype)
            out = torch.full_like(x, 7.0)
            _launch(out, x, form)
            if not torch.equal(out, round_reference(x, form)):
                raise RuntimeError("its values are not those of plain PyTorch")
    except Exception as error:  # drivers and packages fail in many ways, and none need stop a training
        message = f"rounding on cuda:{device} does not use our kernel: {first_line(error)}"
        warnings.warn(message, OvertoneWarning, stacklevel=2)
        return False
    return True


@cache
def kernel(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Return the compiled kernel for tensors of a type, or `None` if it cannot be had."""
    library = cpu.library("blockfloat.c", _MACROS[dtype])
    if library is not None:
        pointers, sizes, numbers = [ctypes.c_void_p] * 2, [ctypes.c_int64] * 4, [ctypes.c_int] * 3
        library.round_blocks.argtypes = [*pointers, *sizes, *numbers]
        library.round_blocks.restype = None
    return library
