"""Local copies of a remote store's models, kept by content in the machine's temporary folder."""

import hashlib
import os
import tempfile
from pathlib import Path

from layers.errors import OvertoneError
from results.ledger.store import Store

__all__ = ["cached_file"]


def cached_file(store: Store, name: str, sha256: str) -> Path:
    """A local copy of a file of the store, fetched once; what does not match its SHA-256 is never handed out."""
    folder = Path(tempfile.gettempdir()) / f"overtone-models-{os.getuid()}"
    local = Store(folder)
    path = folder / Path(name).name
    if local.exists(path.name) and _digest(local.read_bytes(path.name)) == sha256:
        return path
    data = store.read_bytes(name)
    if _digest(data) != sha256:
        raise OvertoneError(f"{store.path_of(name)!r} is damaged: its content does not match its name")
    local.write_bytes(path.name, data)
    return path


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
