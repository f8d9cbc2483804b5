"""The files that a set of images is made of: they tell whether a set is still the one that was read before."""

import hashlib
import json
import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from layers.errors import UsageError, first_line

__all__ = ["Manifest", "content_sha256", "file_sizes", "read_manifest"]

Manifest = list[tuple[str, int, int]]
"""Name relative to the set's folder, size in bytes, time of change in ns; -1 for an unknown size or time."""


def read_manifest(kind: str, folder: str) -> Manifest:
    """Return the files of a 'parquet' or 'imagefolder' set by name, with class folders as 'train/CLASS/'.

    The manifest of a missing folder is empty: whoever reads the set says what it lacks. Raises UsageError for a folder
    that cannot be read, or that has one inside.
    """
    root = Path(folder)
    try:
        if kind == "parquet":
            names = [
                name for name in _names(root) if fnmatch(name, "train-*.parquet") or fnmatch(name, "test-*.parquet")
            ]
        else:
            names = [name for part in ("train", "val") for name in _names_below(root, part)]
        return sorted(_entry(root, name) for name in names)
    except OSError as error:
        raise UsageError(f"cannot read the folder {str(error.filename)!r}: {first_line(error)}") from error


def file_sizes(manifest: Manifest, part: str) -> tuple[tuple[str, int], ...]:
    """Return name and size of each file of a part ('train'), which are the same for a copy of the set."""
    return tuple((name, size) for name, size, _ in manifest if name.startswith(part))


def content_sha256(manifest: Manifest, part: str) -> str:
    """Return a SHA-256 over the names and sizes of a part's files; it stands for content that is not read."""
    return hashlib.sha256(json.dumps(file_sizes(manifest, part)).encode()).hexdigest()


def _names(root: Path) -> list[str]:
    return os.listdir(root) if root.is_dir() else []


def _names_below(root: Path, part: str) -> Iterator[str]:
    if not (root / part).is_dir():
        return
    for parent, folders, files in os.walk(root / part, onerror=_reraise, followlinks=True):
        relative = os.path.relpath(parent, root)
        yield from (f"{relative}/{name}/" for name in folders)
        yield from (f"{relative}/{name}" for name in files)


def _reraise(error: OSError) -> None:
    raise error  # os.walk would pass over a class whose folder cannot be read


def _entry(root: Path, name: str) -> tuple[str, int, int]:
    if name.endswith("/"):
        return name, 0, 0
    try:
        stat = os.stat(root / name)
    except OSError:  # a dangling link, or a file that has just been deleted
        return name, -1, -1
    return name, stat.st_size, stat.st_mtime_ns
