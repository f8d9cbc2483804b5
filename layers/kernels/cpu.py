"""Our C kernels: compiled for this very machine when a process first needs them, run by PyTorch's own OpenMP threads.

That takes a second or so, and nothing is kept on disk. Where there is no C compiler (`cc`, or what `CC` names) there is
no kernel, and plain PyTorch does the work.
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

from layers.kernels.gpu import FOLDER

__all__ = ["library"]

_PARALLEL: tuple[list[str], ...] = (["-fopenmp"], [])
_TUNED: tuple[list[str], ...] = (["-march=native"], ["-mcpu=native"], [])
"""Flags, of which the compiler may know the first or only later ones."""


@cache
def library(source: str, macros: tuple[str, ...] = ()) -> ctypes.CDLL | None:
    """The file `source` of `csrc`, compiled with such macros defined, or `None` where it cannot be had."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not compiler or shutil.which(compiler[0]) is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"{source}.so"
        for parallel, tuned in itertools.product(_PARALLEL, _TUNED):
            flags = ["-O3", "-shared", "-fPIC", *parallel, *tuned, *(f"-D{macro}" for macro in macros)]
            command = [*compiler, *flags, "-o", str(target), str(FOLDER / source)]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return _loaded(target)
    return None


def _loaded(path: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # a folder from which nothing may be run
        return None
