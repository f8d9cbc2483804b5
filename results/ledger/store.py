"""Where a study's files live: a local folder, NFS, or any file system that pyarrow opens by URI (`s3://bucket/prefix`).

Every write is whole or absent. Locally that is a temporary name in the same folder, fsync, `os.replace`, fsync of the
folder (a file that can be made again is not synced); an object store makes an object visible when its upload ends;
other remote systems write and then rename.
Every failure is one sentence naming the file, without the credentials that a URI may carry.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from layers.errors import OvertoneError, UsageError

__all__ = ["MissingFile", "Store"]

_OBJECT_STORES = frozenset({"s3", "gcs", "abfs"})


class MissingFile(OvertoneError):
    """A file that was to be read is not there (any more)."""


class Store:
    """Files by name (`trials/study=demo/a.parquet`) under one root; opening a store creates nothing."""

    def __init__(self, uri: str | os.PathLike[str] = "runs") -> None:
        self.uri = os.fspath(uri)
        if not self.uri:
            raise UsageError("the store (='') must be a folder or a URI such as s3://bucket/prefix")
        self._files = _open(self.uri)

    @property
    def label(self) -> str:
        """The store as it may be shown: the URI without user, password and query."""
        return _shown(self.uri)

    @property
    def local_root(self) -> Path | None:
        """The folder of a local store, None for a remote one."""
        return self._files.root if isinstance(self._files, _Local) else None

    def path_of(self, name: str) -> str:
        """The full place of a file as a person would write it."""
        return f"{self.label.rstrip('/')}/{name}"

    def read_bytes(self, name: str) -> bytes:
        """The whole file; a missing or unreadable one is an OvertoneError naming it."""
        with _told("read", self.path_of(name)):
            return self._files.read(name)

    def write_bytes(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Replaces or creates a file in one step: a reader sees the old content or the new, never a part.

        One that need not be `durable` costs no wait for the disk, and a power cut may leave it empty.
        """
        with _told("write", self.path_of(name)):
            self._files.write(name, data, durable)

    def move(self, name: str, to: str) -> None:
        """Gives a file another name, in one step on a file system, as a copy that is whole in an object store."""
        with _told("move", self.path_of(name)):
            self._files.move(name, to)

    def open(self, name: str) -> pa.NativeFile:
        """The file, opened for reading any part of it: a Parquet file's footer and the columns that are wanted."""
        with _told("read", self.path_of(name)):
            return self._files.open(name)

    def delete(self, name: str) -> None:
        """Takes a file away; one that is not there is let be."""
        with _told("delete", self.path_of(name)), suppress(FileNotFoundError):
            self._files.delete(name)

    def exists(self, name: str) -> bool:
        """Whether a file of this name is there."""
        with _told("read", self.path_of(name)):
            return self._files.exists(name)

    def list(self, prefix: str, suffix: str = "") -> list[str]:
        """The sorted names of the files in folder `prefix` that end with `suffix`, without hidden, unfinished ones."""
        with _told("list", self.path_of(prefix)):
            found = self._files.names(prefix.strip("/"))
        return sorted(f"{prefix.strip('/')}/{name}" for name in found if name.endswith(suffix) and name[0] != ".")


class _Files(Protocol):
    """What a store needs of a file system; failures are OSError or ArrowException."""

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
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            _fsync_folder(path.parent)

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


def _open(uri: str) -> _Files:
    if "://" in uri and not uri.startswith("file://"):
        return _open_remote(uri)
    root = Path(unquote(urlsplit(uri).path) if uri.startswith("file://") else uri).expanduser()
    if root.exists() and not root.is_dir():
        raise OvertoneError(f"the store {uri!r} is a file; a folder or a URI such as s3://bucket/prefix is allowed")
    return _Local(root)


def _open_remote(uri: str) -> _Files:
    try:
        files, root = pafs.FileSystem.from_uri(uri)
    except (OSError, pa.ArrowException) as error:
        reason = _sentence(error).replace(uri, _shown(uri))
        raise UsageError(f"the store {_shown(uri)!r} cannot be opened: {reason}") from None
    if not root:
        raise UsageError(f"the store {_shown(uri)!r} names no place; s3://bucket/prefix is allowed")
    return _Remote(files, root)


def _shown(uri: str) -> str:
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@contextmanager
def _told(verb: str, path: str) -> Iterator[None]:
    """Any failure of the file system as one sentence that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise MissingFile(f"cannot {verb} {path!r}: it does not exist") from None
    except (OSError, pa.ArrowException) as error:
        raise OvertoneError(f"cannot {verb} {path!r}: {_sentence(error)}") from None


def _sentence(error: BaseException) -> str:
    """The system's own words for it, on one line."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def _fsync_folder(folder: Path) -> None:
    """Makes the new name itself survive a power cut; file systems that cannot sync a folder are let be."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        return
    finally:
        os.close(descriptor)
