"""Where a study's files live: a local folder, NFS, or any file system that pyarrow opens by URI (`s3://bucket/prefix`).

Every write is whole or absent. Locally `layers.files.atomic_write` does that; an object store makes an object visible
when its upload ends; other remote systems write and then rename.
Every failure is an `OvertoneError` in one sentence that names the file, without the credentials that a URI may carry.
A store is a folder or URI that pandas, Arrow and DuckDB take for the same place; any other is refused.
"""

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from layers.errors import OvertoneError, UsageError, first_line, translate_errors
from layers.files import atomic_write
from results.schema import SCHEMA

__all__ = ["MissingFile", "Store"]

_FILE_PATH = re.compile(r"/([A-Za-z0-9._~!$&'()+,;=:@/-]|%[0-9A-Fa-f]{2})*")
_KEY = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~=+@,-]+)*/?")
_OBJECT_STORES = frozenset({"s3", "gcs", "abfs"})


class MissingFile(OvertoneError):
    """A file that does not exist, or no longer."""


class Store:
    """Files by name (`trials/study=demo/a.parquet`) under one root; opening a store creates nothing."""

    def __init__(self, uri: str | os.PathLike[str] = "runs", *, check: bool = True) -> None:
        """Open a folder or URI; without `check` also one that readers may take for another, such as a whole path."""
        self.uri = os.fspath(uri)
        if check:
            _check_uri(self.uri)
        self._files = _open(self.uri)

    @property
    def label(self) -> str:
        """The store as it may be shown: the URI without user, password and query."""
        return _without_credentials(self.uri)

    @property
    def local_root(self) -> Path | None:
        """The folder of a local store, None for a remote one."""
        return self._files.root if isinstance(self._files, _Local) else None

    def path_of(self, name: str) -> str:
        """Return the full path or URI of a file as a person would write it."""
        return f"{self.label.rstrip('/')}/{name}"

    def read_bytes(self, name: str) -> bytes:
        """Return the whole file; raise `MissingFile` if there is none."""
        with _errors("read", self.path_of(name)):
            return self._files.read(name)

    def write_bytes(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Create or replace a file in one step: a reader sees the old content or the new, never a part.

        A file that need not be `durable` costs no wait for the disk, and a power cut may leave it empty.
        """
        with _errors("write", self.path_of(name)):
            self._files.write(name, data, durable)

    def move(self, name: str, to: str) -> None:
        """Rename a file, in one step on a file system; in an object store copy it whole, then delete it."""
        with _errors("move", self.path_of(name)):
            self._files.move(name, to)

    def open(self, name: str) -> pa.NativeFile:
        """Open a file to read parts of it, such as a Parquet file's footer and some columns."""
        with _errors("read", self.path_of(name)):
            return self._files.open(name)

    def delete(self, name: str) -> None:
        """Delete a file; do nothing if there is none."""
        with _errors("delete", self.path_of(name)), suppress(FileNotFoundError):
            self._files.delete(name)

    def exists(self, name: str) -> bool:
        """Return whether there is a file of this name."""
        with _errors("read", self.path_of(name)):
            return self._files.exists(name)

    def list(self, prefix: str, suffix: str = "") -> list[str]:
        """Return the sorted names of the files in folder `prefix` that end with `suffix`, without hidden files.

        Unfinished files are hidden.
        """
        with _errors("list", self.path_of(prefix)):
            names = self._files.names(prefix.strip("/"))
        return sorted(f"{prefix.strip('/')}/{name}" for name in names if name.endswith(suffix) and name[0] != ".")


class _Files(Protocol):
    """The operations that a store needs of a file system; failures are OSError or ArrowException."""

    def read(self, name: str) -> bytes: ...
    def write(self, name: str, data: bytes, durable: bool) -> None: ...
    def move(self, name: str, to: str) -> None: ...
    def open(self, name: str) -> pa.NativeFile: ...
    def delete(self, name: str) -> None: ...
    def exists(self, name: str) -> bool: ...
    def names(self, folder: str) -> list[str]: ...


class _Local:
    """A folder of this machine or of NFS."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def write(self, name: str, data: bytes, durable: bool) -> None:
        atomic_write(self.root / name, data, durable=durable)

    def move(self, name: str, to: str) -> None:
        (self.root / to).parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.root / name, self.root / to)
        _fsync_folder((self.root / to).parent)

    def open(self, name: str) -> pa.NativeFile:
        return pa.OSFile(os.fspath(self.root / name))

    def delete(self, name: str) -> None:
        (self.root / name).unlink()

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    def names(self, folder: str) -> list[str]:
        path = self.root / folder
        if not path.exists():
            return []
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_file()]


class _Remote:
    """A file system of pyarrow and the folder in it."""

    def __init__(self, files: pafs.FileSystem, root: str) -> None:
        self._fs = files
        self._root = root.rstrip("/")

    def read(self, name: str) -> bytes:
        with self._fs.open_input_stream(self._path(name)) as stream:
            return bytes(stream.read())

    def write(self, name: str, data: bytes, durable: bool) -> None:
        path = self._path(name)
        folder, _, last = path.rpartition("/")
        atomic = self._fs.type_name in _OBJECT_STORES
        if not atomic:
            self._fs.create_dir(folder, recursive=True)
        target = path if atomic else f"{folder}/.{last}.{uuid.uuid4().hex}.tmp"
        with self._fs.open_output_stream(target) as stream:
            stream.write(data)
        if not atomic:
            self._fs.move(target, path)

    def move(self, name: str, to: str) -> None:
        path = self._path(to)
        if self._fs.type_name not in _OBJECT_STORES:
            self._fs.create_dir(path.rpartition("/")[0], recursive=True)
        self._fs.move(self._path(name), path)

    def open(self, name: str) -> pa.NativeFile:
        return self._fs.open_input_file(self._path(name))

    def delete(self, name: str) -> None:
        self._fs.delete_file(self._path(name))

    def exists(self, name: str) -> bool:
        return bool(self._fs.get_file_info(self._path(name)).type == pafs.FileType.File)

    def names(self, folder: str) -> list[str]:
        selector = pafs.FileSelector(self._path(folder), allow_not_found=True)
        return [info.base_name for info in self._fs.get_file_info(selector) if info.type == pafs.FileType.File]

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".lstrip("/")


def _check_uri(uri: str) -> None:
    """Raise `UsageError` for what is empty, what is taken for different places, and what hides values of the ledger."""
    shown = f"store (={_without_credentials(uri)!r})"
    if not uri:
        raise UsageError("store (='') must be a folder or a URI such as s3://bucket/prefix")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:(?!//)", uri):
        raise UsageError(f"{shown} must be a folder, as ./{uri} would be, or a URI such as s3://bucket/prefix")
    parts = urlsplit(uri if "://" in uri else "")
    path = unquote(parts.path) if parts.scheme == "file" else parts.path if parts.scheme else uri
    if uri != uri.strip() or not uri.isprintable() or not path.isprintable():
        raise UsageError(f"{shown} must have no spaces around it, and no line breaks or other unprintable characters")
    if parts.scheme == "file":
        if parts.netloc or parts.query or parts.fragment or not _FILE_PATH.fullmatch(parts.path):
            raise UsageError(
                f"{shown} must be file:/// and a whole path, %20 for a space; a relative one has no file://"
            )
    elif parts.scheme and (parts.fragment or not _KEY.fullmatch(path)):
        raise UsageError(f"{shown} must have folders of letters, digits and ._~=+@,- with one / between them")
    if set(path) & set("*?["):
        raise UsageError(f"{shown} must not hold *, ? or [, which readers take for patterns of names")
    for folder in path.split("/"):
        column = folder.partition("=")[0].lower()
        if "=" in folder and column in SCHEMA.names:
            raise UsageError(f"{shown} must not hold {folder!r}, which readers take for the {column} of every trial")


def _open(uri: str) -> _Files:
    if "://" in uri and not uri.startswith("file://"):
        return _open_remote(uri)
    with translate_errors(f"store (={uri!r}) must be a folder", RuntimeError, to=UsageError):  # no such ~user
        root = Path(unquote(urlsplit(uri).path) if uri.startswith("file://") else uri).expanduser()
    if root.exists() and not root.is_dir():
        raise OvertoneError(f"store (={uri!r}) must be a folder or a URI such as s3://bucket/prefix, not a file")
    return _Local(root)


def _open_remote(uri: str) -> _Files:
    shown = _without_credentials(uri)
    try:
        files, root = pafs.FileSystem.from_uri(uri)
    except (OSError, pa.ArrowException) as error:
        reason = first_line(error).replace(uri, shown)
        raise UsageError(f"cannot open store {shown!r}: {reason}") from None  # the cause may show the URI's password
    if not root:
        raise UsageError(f"store (={shown!r}) must name a bucket or a folder, such as s3://bucket/prefix")
    return _Remote(files, root)


def _without_credentials(uri: str) -> str:
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@contextmanager
def _errors(verb: str, path: str) -> Iterator[None]:
    """Raise a failure of the file system as an `OvertoneError` naming the file, a missing file as `MissingFile`."""
    with translate_errors(f"cannot {verb} {path!r}", OSError, pa.ArrowException):
        try:
            yield
        except FileNotFoundError as error:
            raise MissingFile(f"cannot {verb} {path!r}: it does not exist") from error


def _fsync_folder(folder: Path) -> None:
    """Make a new name survive a power cut; do nothing on file systems that cannot sync a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        return
    finally:
        os.close(descriptor)
