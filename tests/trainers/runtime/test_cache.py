import os
import threading
import time

import pytest
import safetensors.torch
import torch

from trainers.runtime import cache
from trainers.runtime.cache import cache_key, cached_path, read_cached, write_cached, write_cached_file

KEY = cache_key("this")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERTONE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tensors(generator):
    return {
        "images": torch.randint(256, (7, 3, 5, 5), generator=generator, dtype=torch.uint8),
        "labels": torch.randint(9, (7,), generator=generator),
    }


def assert_same(found, tensors):
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)


def test_without_a_folder_there_is_nothing_cached(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("OVERTONE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", homeless)
    assert read_cached(KEY) is None


def test_keys_tell_everything_apart(monkeypatch):
    keys = [cache_key(), cache_key(1), cache_key("1"), cache_key(1, None), cache_key([1, None]), cache_key("\udc80")]
    assert len(set(keys)) == len(keys)
    assert cache_key(1, [("a", 2)]) == cache_key(1, [("a", 2)])
    monkeypatch.setattr(cache, "version", lambda name: "another")
    assert cache_key(1) not in keys


def test_what_was_written_comes_back_with_its_card(tensors):
    assert read_cached(KEY) is None
    write_cached(KEY, tensors, {"mean": [0.1, 1 / 3], "names": ["\udc80", "é"]})
    found, card = read_cached(KEY)
    assert_same(found, tensors)
    assert (card["mean"], card["names"]) == ([0.1, 1 / 3], ["\udc80", "é"])
    assert read_cached(cache_key("that")) is None


def test_tensors_are_mapped_and_writing_to_them_leaves_the_file(tensors):
    write_cached(KEY, tensors, {})
    found, _ = read_cached(KEY)
    with open("/proc/self/maps") as maps:
        assert any(KEY in line for line in maps)
    found["images"].zero_()
    assert_same(read_cached(KEY)[0], tensors)
    write_cached(KEY, {"images": tensors["labels"]}, {})
    assert (found["images"] == 0).all()  # the file that was mapped is still what is mapped
    assert torch.equal(found["labels"], tensors["labels"])


@pytest.mark.parametrize("keep", [0, 4, 60, 0.5, -1])
def test_a_truncated_file_is_not_there(tensors, keep):
    write_cached(KEY, tensors, {})
    path = cached_path(KEY, "safetensors")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    assert read_cached(KEY) is None
    write_cached(KEY, tensors, {})
    assert_same(read_cached(KEY)[0], tensors)


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"overtone": "no json"}, {"overtone": "[1]"}, {"overtone": "{}"}, {"overtone": '{"version": 1}'}],
)
def test_a_foreign_file_is_not_there(tensors, folder, metadata):
    folder.mkdir()
    safetensors.torch.save_file(tensors, cached_path(KEY, "safetensors"), metadata)
    assert read_cached(KEY) is None


def test_an_entry_under_another_key_or_version_is_not_there(tensors, monkeypatch):
    write_cached(KEY, tensors, {})
    other = cache_key("that")
    os.rename(cached_path(KEY, "safetensors"), cached_path(other, "safetensors"))
    assert read_cached(other) is None
    write_cached(KEY, tensors, {})
    monkeypatch.setattr(cache, "CACHE_VERSION", cache.CACHE_VERSION + 1)
    assert read_cached(KEY) is None
    assert cache_key("this") != KEY


def test_a_folder_in_the_files_place_is_not_there(tensors, folder):
    cached_path(KEY, "safetensors").mkdir(parents=True)
    assert read_cached(KEY) is None
    with pytest.raises(OSError, match="directory"):
        write_cached(KEY, tensors, {})
    assert [path.name for path in folder.iterdir()] == [f"{KEY}.safetensors"]


def test_where_no_folder_can_be_made_is_an_os_error(tensors, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("OVERTONE_CACHE", str(tmp_path / "file" / "cache"))
    assert read_cached(KEY) is None
    with pytest.raises(OSError, match="Not a directory"):
        write_cached(KEY, tensors, {})


def test_a_file_that_does_not_fit_leaves_nothing(full_disk, folder, generator):
    with full_disk(), pytest.raises(OSError, match="File too large"):
        write_cached(KEY, {"images": torch.zeros(100_000)}, {})
    assert list(folder.iterdir()) == []
    assert read_cached(KEY) is None


def test_whoever_writes_at_the_same_time_the_file_is_whole(folder):
    wanted = [bytes([number]) * 200_000 for number in range(4)]
    path, wrong, over = folder / "entry", [], threading.Event()
    write_cached_file(path, lambda scratch: scratch.write_bytes(wanted[0]))

    def watch():
        while not over.is_set():
            if path.read_bytes() not in wanted:
                wrong.append("partial")

    def put(content):
        for _ in range(10):
            write_cached_file(path, lambda scratch: scratch.write_bytes(content))

    threads = [threading.Thread(target=put, args=(content,)) for content in wanted]
    watcher = threading.Thread(target=watch)
    for thread in (watcher, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    watcher.join()
    assert wrong == []
    assert list(folder.iterdir()) == [path]


def test_leftovers_of_dead_writers_go_after_a_day_and_nothing_else(folder, tensors):
    folder.mkdir()
    names = [f".{KEY}.safetensors.{'0' * 32}.tmp", f".{KEY}.arrow.{'1' * 32}.tmp", ".mine.tmp", f"{KEY}.arrow"]
    for name in names:
        (folder / name).write_bytes(b"half")
    past = time.time() - 25 * 3600
    for name in (names[0], *names[2:]):
        os.utime(folder / name, (past, past))
    write_cached(KEY, tensors, {})
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names[1:], f"{KEY}.safetensors"])
    assert_same(read_cached(KEY)[0], tensors)
