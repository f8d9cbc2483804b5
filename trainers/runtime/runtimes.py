"""Where a network may run: runtimes by name, the files that each opens, and the packages that it needs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from layers.errors import UsageError

__all__ = ["DEFAULT_RUNTIME", "DEFAULT_THREADS", "RUNTIMES", "check_runtime", "check_threads", "runtime_of_file"]

RUNTIMES = ("torch", "onnxruntime", "openvino")
DEFAULT_RUNTIME = RUNTIMES[0]
"""Where the latency of a trial is taken, unless it is told otherwise: it is that of the model, not of a file."""
DEFAULT_THREADS = 1
"""Threads of a file that is timed, unless it is told otherwise."""
_OPENED = {".onnx": ("onnxruntime", "openvino"), ".pt2": ("torch",), ".safetensors": ("torch",)}
"""Runtimes that open a file, by its suffix; the first is the usual one."""


def check_runtime(runtime: str) -> None:
    """Raise `UsageError` for a runtime that is unknown or not installed."""
    if runtime not in RUNTIMES:
        raise UsageError(f"runtime (={runtime!r}) must be one of {', '.join(RUNTIMES)}")
    if importlib.util.find_spec(runtime) is None:
        raise UsageError(f"runtime (={runtime!r}) must be installed: pip install {runtime}")


def check_threads(threads: int | None, name: str = "threads") -> None:
    """Raise `UsageError` unless a number of threads is at least 1, or left open."""
    if threads is not None and threads < 1:
        raise UsageError(f"{name} (={threads}) must be at least 1")


def runtime_of_file(file: str | Path, runtime: str | None = None) -> str:
    """Return the runtime of a file: this one if it opens such files, its usual one by default.

    Raises `UsageError` for one that does not or is not installed, and for a file of another kind.
    """
    allowed = _OPENED.get(Path(file).suffix)
    if runtime is not None:
        check_runtime(runtime)
    if allowed is None:
        mobile = ": ExecuTorch's own runner times a .pte on its device" if Path(file).suffix == ".pte" else ""
        raise UsageError(f"file (={str(file)!r}) must end in one of {', '.join(_OPENED)}{mobile}")
    if runtime is not None and runtime not in allowed:
        raise UsageError(f"runtime (={runtime!r}) must be {' or '.join(allowed)} for the file {str(file)!r}")
    check_runtime(runtime or allowed[0])
    return runtime or allowed[0]
