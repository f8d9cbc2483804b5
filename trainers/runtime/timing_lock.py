"""One timing at a time on a machine: processes that would time at once take turns.

The lock is a file in the folder of cached files, named after the machine because machines may share their users'
folders; where it cannot be made there, it is in the folder of temporary files. The system lets go of it when its
process ends, however that ends.
"""

from __future__ import annotations

import platform
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from layers.errors import OvertoneWarning
from layers.files import cache_folder

__all__ = ["timing_lock"]

_PATIENCE_S = 600.0
"""A timing takes seconds; who has waited so long goes on without the lock."""


@contextmanager
def timing_lock() -> Iterator[None]:
    """Hold the machine's lock for timings; a thread that holds it may take it again.

    Hold none where no folder allows file locks, and after ten minutes of waiting, which is a warning.
    """
    with ExitStack() as stack:
        for folder in _folders():
            path = folder / f"timing-{platform.node()}.lock"
            with suppress(OSError, NotImplementedError):
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    stack.enter_context(FileLock(path, timeout=_PATIENCE_S, is_singleton=True))
                except Timeout:
                    message = f"timed beside another process, which has held {path} for ten minutes"
                    warnings.warn(message, OvertoneWarning, stacklevel=3)
                break
        yield


def _folders() -> Iterator[Path]:
    with suppress(OSError):
        yield cache_folder()
    yield Path(tempfile.gettempdir())
