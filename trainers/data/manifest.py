"""The files that a set of images is made of: they tell whether a set is still the one that was read before."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layers.errors import UsageError, first_line

__all__ = ["Manifest", "content_sha256", "file_sizes", "names_below", "parquet_names", "parquet_root", "read_manifest"]

Manifest = list[tuple[str, int, int]]
"""Name relative to the set's folder, size in bytes, time of change in ns; -1 for an unknown size or time."""


_PARQUET_PARTS = {
    "train": "train|training",
    "validation": "validation|valid|val|dev",
    "test": "test|testing|eval|evaluation",
}


def read_manifest(kind: str, folder: str) -> Manifest:
    """Return the files of a 'parquet' or 'imagefolder' set by name, with folders as 'train/CLASS/'.

    The manifest of a missing folder is empty: whoever reads the set says what it lacks. Raises UsageError for a folder
    that cannot be read, or that has one inside.
    """
    root = parquet_root(folder) if kind == "parquet" else Path(folder)
    if kind == "parquet":
        names = [name for part in _PARQUET_PARTS for name in parquet_names(root, part)]
    else:
        names = [name for part in ("train", "val") for name in names_below(root, part)]
    return sorted(_entry(root, name) for name in names)


def parquet_root(folder: str) -> Path:
    """Return the folder that has a set's Parquet files: `data` in it if it has no training files itself."""
    root = Path(folder)
    return root / "data" if not parquet_names(root, "train") and parquet_names(root / "data", "train") else root


def parquet_names(root: Path, part: str) -> list[str]:
    """Return the names of the files of 'train', 'validation' or 'test' in order, as Hugging Face's reader knows them.

    A name is the part's, or another word for it, and whatever follows a character that is no letter.
    """
    with _usage_errors():
        names = os.listdir(root) if root.is_dir() else []
    return sorted(name for name in names if re.fullmatch(rf"(?:{_PARQUET_PARTS[part]})(?:[-._ 0-9].*)?\.parquet", name))


def names_below(root: Path, part: str) -> list[str]:
    """Return all files below a folder of the root, and the folders there as 'train/CLASS/', in no order.

    Links are followed; raises UsageError for one that leads back to a folder that holds it, which has no end, and for
    a folder that cannot be read.
    """
    names: list[str] = []
    identities: dict[str, tuple[int, int]] = {}
    top = str(root / part)
    with _usage_errors():
        for parent, folders, files in os.walk(top, onerror=_reraise, followlinks=True) if Path(top).is_dir() else ():
            stat, above = os.stat(parent), parent
            identities[parent] = (stat.st_dev, stat.st_ino)
            while above != top:
                above = os.path.dirname(above)
                if identities[above] == identities[parent]:
                    raise UsageError(f"the folder {parent!r} must not be a link to {above!r}, which holds it")
            relative = os.path.relpath(parent, root)
            names += [f"{relative}/{name}/" for name in folders] + [f"{relative}/{name}" for name in files]
    return names


@contextmanager
def _usage_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot read the folder {str(error.filename)!r}: {first_line(error)}") from error


def file_sizes(manifest: Manifest, part: str) -> tuple[tuple[str, int], ...]:
    """Return name and size of each file of a part ('train'), which are the same for a copy of the set."""
    return tuple((name, size) for name, size, _ in manifest if name.startswith(part))


def content_sha256(manifest: Manifest, part: str) -> str:
    """Return a SHA-256 over the names and sizes of a part's files; it stands for content that is not read."""
    return hashlib.sha256(json.dumps(file_sizes(manifest, part)).encode()).hexdigest()


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
