"""The C kernel of block floating point, compiled for this very machine when a process first needs it.

That takes less than a second, and nothing is kept on disk. Where there is no C compiler (`cc`, or what `CC` names)
there is no kernel, and plain PyTorch gives the same bits.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from layers.blockformat import BlockFormat

__all__ = ["kernel", "round_into", "takes"]

_SOURCE = Path(__file__).parent / "csrc" / "blockfloat.c"
_PARALLEL: tuple[list[str], ...] = (["-fopenmp"], [])
_TUNED: tuple[list[str], ...] = (["-march=native"], ["-mcpu=native"], [])
"""Flags, of which the compiler may know the first or only later ones. PyTorch's own OpenMP threads do the work."""


def takes(x: Tensor) -> bool:
    """Whether the kernel can round this tensor: a plain one on the CPU, that nothing is tracing."""
    if torch.compiler.is_compiling() or type(x) not in (Tensor, nn.Parameter) or x.device.type != "cpu":
        return False
    return torch._C._get_tracing_state() is None and kernel() is not None


def round_into(out: Tensor, x: Tensor, form: BlockFormat) -> None:
    """Fill `out` with `x` rounded to nearest even; both contiguous, float32, of one shape, and not overlapping."""
    library = kernel()
    assert library is not None
    where = (x.data_ptr(), out.data_ptr(), *form.runs(x.shape))
    library.round_blocks(*where, form.block, form.bits, form.lowest, torch.get_num_threads())


@cache
def kernel() -> ctypes.CDLL | None:
    """The compiled kernel, or `None` where it cannot be had."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not compiler or shutil.which(compiler[0]) is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "blockfloat.so"
        for parallel, tuned in itertools.product(_PARALLEL, _TUNED):
            flags = ["-O3", "-shared", "-fPIC", *parallel, *tuned]
            command = [*compiler, *flags, "-o", str(target), str(_SOURCE)]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return _loaded(target)
    return None


def _loaded(path: Path) -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(path))
    except OSError:  # a folder from which nothing may be run
        return None
    pointers, sizes, numbers = [ctypes.c_void_p] * 2, [ctypes.c_int64] * 4, [ctypes.c_int] * 3
    library.round_blocks.argtypes, library.round_blocks.restype = [*pointers, *sizes, *numbers], None
    return library
