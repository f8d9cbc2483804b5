import os
import stat
from pathlib import Path

import pytest
import safetensors.torch
import torch

from layers import UsageError
from layers.files import atomic_folder, atomic_write, cache_folder


@pytest.fixture
def synced(monkeypatch):
    """Whether each descriptor that is synced is a folder's, in order."""
    kinds = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: kinds.append(stat.S_ISDIR(os.fstat(descriptor).st_mode)))
    return kinds


def names(folder):
    return [entry.name for entry in folder.iterdir()]


def failing(scratch):
    scratch.write_text("half")
    raise KeyboardInterrupt


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("content", [b"new", b"", lambda scratch: scratch.write_bytes(b"new")])
@pytest.mark.parametrize("before", [None, b"a longer text"])
def test_a_file_has_the_content_in_folders_that_are_made(tmp_path, content, durable, before):
    path = tmp_path / "some" / "folders" / "a"
    if before is not None:
        path.parent.mkdir(parents=True)
        path.write_bytes(before)
    atomic_write(path, content, durable=durable)
    assert path.read_bytes() == (content if isinstance(content, bytes) else b"new")
    assert names(path.parent) == ["a"]


def test_readers_see_no_part_of_a_file(tmp_path):
    path = tmp_path / "a"
    path.write_text("before")

    def fill(scratch):
        scratch.write_text("half")
        assert path.read_text() == "before"
        scratch.write_text("after")

    atomic_write(path, fill)
    assert path.read_text() == "after"


def test_a_durable_file_waits_for_the_disk_then_for_the_folder(tmp_path, synced):
    atomic_write(tmp_path / "a", b"a")
    assert synced == [False, True]


def test_a_file_that_need_not_be_durable_waits_for_nothing(tmp_path, synced):
    atomic_write(tmp_path / "a", b"a", durable=False)
    assert synced == []


def test_a_file_system_that_cannot_sync_folders_is_no_failure(tmp_path, monkeypatch):
    def only_files(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", only_files)
    atomic_write(tmp_path / "a", b"a")
    assert (tmp_path / "a").read_bytes() == b"a"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_whoever_may_read_a_new_file_may_read_what_safetensors_wrote(tmp_path, umask):
    path, tensors = tmp_path / "a", {"x": torch.zeros(2)}
    before = os.umask(umask)
    try:
        atomic_write(path, lambda scratch: safetensors.torch.save_file(tensors, scratch))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    assert names(tmp_path) == ["a"]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "a"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, failing)
    assert path.read_text() == "before"
    assert names(tmp_path) == ["a"]


def test_a_failure_of_the_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        atomic_write(tmp_path / "a", b"a")
    assert names(tmp_path) == []


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_appears_whole(tmp_path, is_there):
    path = tmp_path / "some" / "out"
    if is_there:
        path.mkdir(parents=True)
    with atomic_folder(path) as scratch:
        (scratch / "inner").mkdir()
        (scratch / "inner" / "a").write_text("a")
        assert not path.exists() or names(path) == []
    assert (path / "inner" / "a").read_text() == "a"
    assert names(path.parent) == ["out"]
    assert path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_whose_block_fails_is_as_it_was(tmp_path, is_there):
    path = tmp_path / "out"
    if is_there:
        path.mkdir()
    with pytest.raises(KeyboardInterrupt), atomic_folder(path) as scratch:
        failing(scratch / "a")
    assert names(tmp_path) == (["out"] if is_there else [])
    assert not is_there or names(path) == []


@pytest.mark.parametrize("make", [lambda path: path.write_text("a"), lambda path: (path / "inner").mkdir(parents=True)])
def test_a_folder_in_use_is_refused(tmp_path, make):
    path = tmp_path / "out"
    make(path)
    with pytest.raises(UsageError, match=r"^out \(='.*out'\) must be a new or empty folder$"), atomic_folder(path):
        pytest.fail("the block runs")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OVERTONE_CACHE": "/of/ours", "XDG_CACHE_HOME": "/of/all", "HOME": "/home/me"}, "/of/ours"),
        ({"OVERTONE_CACHE": "", "XDG_CACHE_HOME": "/of/all", "HOME": "/home/me"}, "/of/all/overtone"),
        ({"XDG_CACHE_HOME": "/of/all", "HOME": "/home/me"}, "/of/all/overtone"),
        ({"XDG_CACHE_HOME": "", "HOME": "/home/me"}, "/home/me/.cache/overtone"),
        ({"HOME": "/home/me"}, "/home/me/.cache/overtone"),
    ],
)
def test_the_cache_is_where_the_environment_says(variables, expected, monkeypatch):
    for name in ("OVERTONE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def test_without_a_home_there_is_no_cache(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("OVERTONE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(OSError, match=r"^there is no home folder$"):
        cache_folder()
