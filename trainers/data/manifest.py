"""The files that a set of images is made of: what tells that a set is still the one that was read before."""

import hashlib
import json
import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from layers.errors import UsageError

__all__ = ["Manifest", "content_of", "read_manifest", "sizes_of"]

Manifest = list[tuple[str, int, int]]
"""Name relative to the set's folder, size in bytes, time of change in ns; -1 for a size or time that is not known."""


def read_manifest(kind: str, folder: str) -> Manifest:
    """The files of a 'parquet' or 'imagefolder' set by name, and class folders as 'train/CLASS/'.

    Empty where there is no such folder: whoever reads the set says what it lacks. Raises UsageError for a folder that
    cannot be read, or has one inside.
    """
    root = Path(folder)
    try:
        if kind == "parquet":
            names = [
                name for name in _names(root) if fnmatch(name, "train-*.parquet") or fnmatch(name, "test-*.parquet")
            ]
        else:
            names = [name for part in ("train", "val") for name in _below(root, part)]
        return sorted(_entry(root, name) for name in names)
    except OSError as error:
        raise UsageError(f"the folder {str(error.filename)!r} cannot be read ({error.strerror}).") from error


def sizes_of(files: Manifest, part: str) -> tuple[tuple[str, int], ...]:
    """Name and size of each file of a part ('train'), which a copy of the set has too."""
    return tuple((name, size) for name, size, _ in files if name.startswith(part))


def content_of(files: Manifest, part: str) -> str:
    """sha256 over the names and sizes of a part's files, which stands for their content where that is not read."""
    return hashlib.sha256(json.dumps(sizes_of(files, part)).encode()).hexdigest()


def _names(root: Path) -> list[str]:
    return os.listdir(root) if root.is_dir() else []


def _below(root: Path, part: str) -> Iterator[str]:
    if not (root / part).is_dir():
        return
    for parent, folders, files in os.walk(root / part, onerror=_refuse, followlinks=True):
        relative = os.path.relpath(parent, root)
        yield from (f"{relative}/{name}/" for name in folders)
        yield from (f"{relative}/{name}" for name in files)


def _refuse(error: OSError) -> None:
    raise error  # os.walk would pass over a class whose folder cannot be read


def _entry(root: Path, name: str) -> tuple[str, int, int]:
    if name.endswith("/"):
        return name, 0, 0
    try:
        found = os.stat(root / name)
    except OSError:  # a dangling link, or a file that has just gone
        return name, -1, -1
    return name, found.st_size, found.st_mtime_ns
