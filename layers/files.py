"""Files and folders that appear whole or not at all, the folder of cached files, and an output that is lost."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from layers.errors import UsageError

__all__ = ["atomic_folder", "atomic_write", "cache_folder", "discard_output"]


def atomic_write(path: Path, content: bytes | Callable[[Path], object], *, durable: bool = True) -> None:
    """Create or replace a file in one step: readers see the old content or the new, never a part.

    `content` is the bytes, or a function that fills the temporary file whose path it is given. Missing folders are
    made. The file survives a power cut once this returns, unless `durable` is false, which costs no wait for the disk.
    A failure (`OSError`, or what `content` raises) leaves nothing behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        scratch.touch()
        mode = scratch.stat().st_mode
        if callable(content):
            content(scratch)
            scratch.chmod(mode)  # that of any new file here: safetensors would keep its files from other users
        else:
            scratch.write_bytes(content)
        if durable:
            _sync(scratch, os.O_RDWR)
        os.replace(scratch, path)
    except BaseException:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise
    if durable:
        with suppress(OSError):  # some file systems cannot sync a folder
            _sync(path.parent, os.O_RDONLY)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` if the block ends well, and is removed if it does not.

    Raises `UsageError` unless `path` is new or an empty folder, and `OSError` if it cannot be made.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(f"out (={str(path)!r}) must be a new or empty folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        os.replace(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def cache_folder() -> Path:
    """Return the folder of cached files: $OVERTONE_CACHE, else $XDG_CACHE_HOME/overtone, else ~/.cache/overtone.

    Raises `OSError` if no variable names a folder and there is no home.
    """
    if named := os.environ.get("OVERTONE_CACHE"):
        return Path(named)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "overtone"
    try:
        return Path.home() / ".cache" / "overtone"
    except RuntimeError as error:
        raise OSError("there is no home folder") from error


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard_output() -> None:
    """Send what is left of standard output nowhere, so that Python does not fail over it when it exits."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
