"""Files that spare a machine from decoding images again, or from asking a teacher for the same outputs again
(`trainers.training.distillation`): tensors that every process maps, one copy in memory.

They are in the folder of cached files (`layers.files.cache_folder`). Any of them may be deleted at any time, but not
written into. A file is named by the SHA-256 of the request it answers and appears whole or not at all; a truncated or
foreign file, or one of another version, counts as missing. Mapped tensors may be written to: the file stays as it is.
"""

import hashlib
import json
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
from layers.files import atomic_write, cache_folder

__all__ = [
    "CACHE_VERSION",
    "cache_key",
    "cached_path",
    "machine_lock",
    "read_cached",
    "write_cached",
    "write_cached_file",
]

CACHE_VERSION = 3
"""Version of the files' layout and of everything that turns encoded images into their content; others are not read."""

_PATIENCE_SECONDS = 10.0
_STALE_SECONDS = 24 * 3600  # a temporary file this old has lost its writer


def cache_key(*request: object) -> str:
    """Return a SHA-256 over plain values and the versions of the libraries that decoded pixels depend on."""
    text = json.dumps([CACHE_VERSION, [version(name) for name in ("pillow", "torch", "torchvision")], request])
    return hashlib.sha256(text.encode()).hexdigest()


def cached_path(key: str, suffix: str) -> Path:
    """Return the path of a key's file, whether it exists or not; raise OSError as `cache_folder` does."""
    return cache_folder() / f"{key}.{suffix}"


def read_cached(key: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Return the tensors, mapped, and the card that `write_cached` left; None if there is no file that can be used."""
    try:
        with safetensors.safe_open(cached_path(key, "safetensors"), framework="pt") as file:
            card = json.loads(file.metadata()["overtone"])
            if (card["version"], card["key"]) != (CACHE_VERSION, key):
                return None
            return {name: file.get_tensor(name) for name in file.keys()}, card  # noqa: SIM118
    except (OSError, RuntimeError, safetensors.SafetensorError, LookupError, TypeError, ValueError):
        return None


def write_cached(key: str, tensors: Mapping[str, torch.Tensor], card: Mapping[str, Any]) -> None:
    """Write tensors with a card of plain JSON to the cache; raise OSError if that is not possible."""
    text = json.dumps({**card, "version": CACHE_VERSION, "key": key})

    def write(path: Path) -> None:
        try:
            safetensors.torch.save_file(dict(tensors), path, {"overtone": text})
        except safetensors.SafetensorError as error:
            raise OSError(str(error)) from error

    write_cached_file(cached_path(key, "safetensors"), write)


@contextmanager
def machine_lock(*request: object) -> Iterator[None]:
    """Hold the machine's lock of a request, so that one process at a time works on it; without file locks, hold none.

    Warns (OvertoneWarning) of a long wait.
    """
    with ExitStack() as stack:
        with suppress(OSError, NotImplementedError):
            path = cached_path(cache_key(*request), "lock")
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_acquire(FileLock(path)))
        yield


def _acquire(lock: FileLock) -> AbstractContextManager[object]:
    with suppress(Timeout):
        return lock.acquire(timeout=_PATIENCE_SECONDS)
    message = f"waiting for another process that decodes these images (it holds {lock.lock_file})"
    warnings.warn(message, OvertoneWarning, stacklevel=2)
    return lock.acquire()


def write_cached_file(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file of the cache whole, and delete what dead writers left there a day ago or earlier."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    atomic_write(path, write)


def _sweep(folder: Path) -> None:
    for path in folder.glob(f".{'[0-9a-f]' * 64}.*.tmp"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - _STALE_SECONDS:
                path.unlink()
