"""Our CUDA kernels: compiled by NVRTC for the GPU at hand when a process first needs them, run on PyTorch's stream.

Neither a CUDA toolkit nor a compiler is needed, only the package `cuda-core` (`pip install cuda-core`).
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import torch

from layers.kernels import CSRC

__all__ = ["compile_kernels", "installed", "launch"]


def installed() -> bool:
    """Return whether kernels can be compiled here; running them takes a GPU too."""
    return importlib.util.find_spec("cuda") is not None and importlib.util.find_spec("cuda.core") is not None


def compile_kernels(source: str, arch: str, macros: tuple[str, ...] = (), log: Any = None) -> Any:
    """Compile the file `source` of `csrc` for an architecture such as `sm_90`; the result has its kernels by name.

    To `log`, by its `write`, goes the assembler's report on registers, stack frames and spills.
    """
    from cuda.core import Program, ProgramOptions

    verbose = {"ptxas_options": "-v"} if log is not None else {}
    defined = {"define_macro": list(macros)} if macros else {}
    options = ProgramOptions(name=source, arch=arch, include_path=[str(CSRC)], **verbose, **defined)
    return Program((CSRC / source).read_text(), "c++", options).compile("cubin", logs=log)


@cache
def _kernel(source: str, name: str, device: int, macros: tuple[str, ...]) -> Any:
    from cuda.core import Device

    Device(device).set_current()
    major, minor = torch.cuda.get_device_capability(device)
    return _code(source, f"sm_{major}{minor}", macros).get_kernel(name)


@cache
def _code(source: str, arch: str, macros: tuple[str, ...]) -> Any:
    return compile_kernels(source, arch, macros)


def launch(
    source: str, name: str, args: tuple[Any, ...], *, device: int, grid: int, block: int, macros: tuple[str, ...] = ()
) -> None:
    """Run a kernel of `source` on a device's current stream, in `grid` blocks of `block` threads.

    Arguments are addresses, as `int`, and NumPy scalars.
    """
    import cuda.core

    kernel = _kernel(source, name, device, macros)
    config = cuda.core.LaunchConfig(grid=grid, block=block)
    with torch.cuda.device(device):
        cuda.core.launch(torch.cuda.current_stream(device), config, kernel, *args)
