"""Files that spare a machine decoding a set of images again, or asking a teacher of them
(`trainers.training.distillation`): tensors that every process maps, one copy in memory.

They lie in $OVERTONE_CACHE, else $XDG_CACHE_HOME/overtone, else ~/.cache/overtone, and any of them may be deleted, but
not written into, at any time. A file is named by the sha256 of what was asked for and appears whole or not at all; what
is truncated, foreign or of another version counts as not there. Mapped tensors may be written to: the file stays as it
is.
"""

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from filelock import FileLock, Timeout

from layers.errors import OvertoneWarning
from layers.files import atomic_write

__all__ = [
    "CACHE_VERSION",
    "cache_folder",
    "cache_key",
    "cached_path",
    "machine_lock",
    "read_cached",
    "write_cached",
    "write_cached_file",
]

CACHE_VERSION = 2
"""Of the files' layout and of all that turns encoded images into what they hold; older files are not read."""

_PATIENCE_SECONDS = 10.0
_STALE_SECONDS = 24 * 3600  # a temporary file this old has lost its writer


def cache_folder() -> Path:
    """Where cached files lie; raises OSError where no variable names a folder and there is no home."""
    if named := os.environ.get("OVERTONE_CACHE"):
        return Path(named)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "overtone"
    try:
        return Path.home() / ".cache" / "overtone"
    except RuntimeError as error:
        raise OSError("there is no home folder") from error


def cache_key(*asked: object) -> str:
    """sha256 of plain values and of the versions that the decoded pixels depend on."""
    text = json.dumps([CACHE_VERSION, [version(name) for name in ("pillow", "torch", "torchvision")], asked])
    return hashlib.sha256(text.encode()).hexdigest()


def cached_path(key: str, suffix: str) -> Path:
    """The file of a key, there or not; raises OSError as `cache_folder` does."""
    return cache_folder() / f"{key}.{suffix}"


def read_cached(key: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """The tensors, mapped, and the card that `write_cached` left; None where there is no such file that can be used."""
    try:
        with safetensors.safe_open(cached_path(key, "safetensors"), framework="pt") as file:
            card = json.loads(file.metadata()["overtone"])
            if (card["version"], card["key"]) != (CACHE_VERSION, key):
                return None
            return {name: file.get_tensor(name) for name in file.keys()}, card  # noqa: SIM118
    except (OSError, RuntimeError, safetensors.SafetensorError, LookupError, TypeError, ValueError):
        return None


def write_cached(key: str, tensors: Mapping[str, torch.Tensor], card: Mapping[str, Any]) -> None:
    """Keep the tensors with a card of plain JSON; raises OSError where that is not possible."""
    text = json.dumps({**card, "version": CACHE_VERSION, "key": key})

    def write(path: Path) -> None:
        try:
            safetensors.torch.save_file(dict(tensors), path, {"overtone": text})
        except safetensors.SafetensorError as error:
            raise OSError(str(error)) from error

    write_cached_file(cached_path(key, "safetensors"), write)


@contextmanager
def machine_lock(*asked: object) -> Iterator[None]:
    """Wait until no other process of the machine does what is asked for; where no file can be locked, do not wait.

    Warns (OvertoneWarning) of a wait that is long.
    """
    with ExitStack() as stack:
        with suppress(OSError, NotImplementedError):
            path = cached_path(cache_key(*asked), "lock")
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_acquired(FileLock(path)))
        yield


def _acquired(lock: FileLock) -> AbstractContextManager[object]:
    with suppress(Timeout):
        return lock.acquire(timeout=_PATIENCE_SECONDS)
    said = f"another process decodes these images, and is waited for (until it lets go of {lock.lock_file})."
    warnings.warn(said, OvertoneWarning, stacklevel=2)
    return lock.acquire()


def write_cached_file(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file of the cache whole; what dead writers left there a day ago or earlier is deleted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    atomic_write(path, write)


def _sweep(folder: Path) -> None:
    for path in folder.glob(f".{'[0-9a-f]' * 64}.*.tmp"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - _STALE_SECONDS:
                path.unlink()
