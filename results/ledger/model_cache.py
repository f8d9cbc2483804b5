"""Local copies of a remote store's models, named by their content, in the folder of cached files."""

import hashlib
from contextlib import suppress
from pathlib import Path

from layers.errors import OvertoneError, translate_errors
from layers.files import atomic_write, cache_folder
from results.ledger.store import Store

__all__ = ["cached_file"]


def cached_file(store: Store, name: str, sha256: str) -> Path:
    """Return a local copy of a file of the store, fetched once.

    The copy lies in `models` of `cache_folder()`. Content that does not match its SHA-256 is never returned: a damaged
    copy is fetched again, a damaged original raises `OvertoneError`, and so does a folder that cannot be written.
    """
    with translate_errors(f"cannot cache {store.path_of(name)!r}", OSError):
        path = cache_folder() / "models" / Path(name).name
        with suppress(FileNotFoundError):
            if _digest(path.read_bytes()) == sha256:
                return path
        data = store.read_bytes(name)
        if _digest(data) != sha256:
            raise OvertoneError(f"{store.path_of(name)!r} is damaged: its content does not match its name")
        atomic_write(path, data, durable=False)
        return path


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
