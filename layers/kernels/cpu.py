"""Our C kernels: compiled for this very machine when they are first needed, run by PyTorch's own OpenMP threads.

Compiling takes a second or so. What comes of it is kept in the cache folder (`layers.files.cache_folder`), named by a
hash of what it was made from: sources, macros, flags, compiler and processor. If nothing can be kept there, every
process compiles anew. Without a C compiler (`cc`, or what `CC` names) there is no kernel, and plain PyTorch does the
work.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import warnings
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

from layers.errors import OvertoneWarning
from layers.files import atomic_write, cache_folder
from layers.kernels import CSRC

__all__ = ["library"]

_FLAGS = ("-O3", "-shared", "-fPIC")
_PARALLEL: tuple[tuple[str, ...], ...] = (("-fopenmp",), ())
_TUNED: tuple[tuple[str, ...], ...] = (("-march=native",), ("-mcpu=native",), ())
"""Flags, of which the compiler may know the first or only later ones."""
_FEATURES = (
    *("cpu family", "model", "model name", "flags"),
    *("CPU implementer", "CPU part", "CPU variant", "Features"),
    *("cpu", "isa", "uarch"),
)
"""What /proc/cpuinfo calls the processor and its instructions, on x86, on Arm and elsewhere."""
_DIGEST_BYTES = 32


@cache
def library(
    source: str, macros: tuple[str, ...] = (), *, mirror: type[ctypes.Structure] | None = None
) -> ctypes.CDLL | None:
    """Return the file `source` of `csrc`, compiled with these macros defined, or `None` if it cannot be had.

    `mirror` is the struct that its functions take, as Python declares it, to be compared with the one that the source
    exports by `EXPORT_LAYOUT`. If they differ there is no library either, and an `OvertoneWarning`.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not compiler or shutil.which(compiler[0]) is None:
        return None
    found = _from_cache(compiler, CSRC / source, macros)
    if found is not None and mirror is not None and not _is_mirrored(found, mirror):
        message = f"{source} is not used: it lays its struct out otherwise than Python ({mirror.__name__})"
        warnings.warn(message, OvertoneWarning, stacklevel=2)
        return None
    return found


def _from_cache(compiler: list[str], source: Path, macros: tuple[str, ...]) -> ctypes.CDLL | None:
    """Load the compiled source from the cache folder, or else compile it and put it there."""
    cached = _cached_path(compiler, source, macros)
    if cached is not None and (found := _load_cached(cached)) is not None:
        return found
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"{source.name}.so"
        if not _compile(compiler, source, macros, target):
            return None
        if cached is not None:
            code = target.read_bytes()
            with suppress(OSError):  # the folder cannot be written, or the disk is full
                atomic_write(cached, code + sha256(code).digest(), durable=False)
        return _load(target)


def _cached_path(compiler: list[str], source: Path, macros: tuple[str, ...]) -> Path | None:
    """Return where the compiled source is kept, or `None` if there is no cache folder."""
    flags = (_FLAGS, _PARALLEL, _TUNED, macros)
    made_from = (_texts(source), flags, compiler, shutil.which(compiler[0]), _version(tuple(compiler)), _processor())
    try:
        return cache_folder() / "kernels" / f"{source.stem}-{sha256(repr(made_from).encode()).hexdigest()}.so"
    except OSError:
        return None


def _texts(source: Path) -> list[str]:
    """Return the text of a source and of our headers that it includes."""
    text = source.read_text()
    headers = re.findall(r'^\s*#\s*include\s*"([^"]+)"', text, re.MULTILINE)
    return [text, *(inner for header in headers for inner in _texts(source.parent / header))]


@cache
def _version(compiler: tuple[str, ...]) -> str:
    lines = subprocess.run([*compiler, "--version"], capture_output=True, check=False).stdout.splitlines()
    return lines[0].decode(errors="replace") if lines else ""


@cache
def _processor() -> str:
    """Return what the flags that tune for this machine depend on."""
    with suppress(OSError), open("/proc/cpuinfo", errors="replace") as lines:
        first = itertools.takewhile(str.strip, lines)
        if found := [line for line in first if line.partition(":")[0].strip() in _FEATURES]:
            return "".join([platform.machine(), "\n", *found])
    return f"{platform.machine()} {platform.processor()}"


def _compile(compiler: list[str], source: Path, macros: tuple[str, ...], target: Path) -> bool:
    for parallel, tuned in itertools.product(_PARALLEL, _TUNED):
        flags = [*_FLAGS, *parallel, *tuned, *(f"-D{macro}" for macro in macros)]
        command = [*compiler, *flags, "-o", str(target), str(source)]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return True
    return False


def _load_cached(path: Path) -> ctypes.CDLL | None:
    """Load a kept library, or return `None` if it is not there or not whole: loading a part can end the process."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    code, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    return _load(path) if sha256(code).digest() == digest else None


def _load(path: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # of another machine, or in a folder from which nothing may be run
        return None


def _is_mirrored(found: ctypes.CDLL, mirror: type[ctypes.Structure]) -> bool:
    """Return whether C's struct has the size of Python's, and its last field the offset of the one of that name."""
    try:
        layout, last_field = found.layout, found.last_field
    except AttributeError:
        return False
    layout.restype, last_field.restype = ctypes.c_int64, ctypes.c_char_p
    last = getattr(mirror, last_field().decode(), None)
    return last is not None and (layout(0), layout(1)) == (ctypes.sizeof(mirror), last.offset)
