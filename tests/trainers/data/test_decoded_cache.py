import os
import re
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from layers.errors import OvertoneError, OvertoneWarning
from trainers.data import Data, DataSpec, load_data
from trainers.data import load as data_module
from trainers.data.decoded_cache import data_key, load_decoded
from trainers.data.manifest import read_manifest
from trainers.runtime import cache
from trainers.runtime.cache import CACHE_VERSION, read_cached, write_cached


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    """The folder that this test's files are kept in."""
    monkeypatch.setenv("OVERTONE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["parquet", "imagefolder"])
def spec(request) -> DataSpec:
    if request.param == "parquet":
        return DataSpec(name=f"parquet:{request.getfixturevalue('parquet_set')}")
    return DataSpec(name=f"imagefolder:{request.getfixturevalue('image_folder')}", image_size=7)


@pytest.fixture
def decoded(monkeypatch) -> list[DataSpec]:
    """What was decoded, in order."""
    seen, decode = [], data_module._decode
    monkeypatch.setattr(data_module, "_decode", lambda spec, *rest: seen.append(spec) or decode(spec, *rest))
    return seen


def uncached(spec: DataSpec) -> Data:
    return data_module._decode(spec, data_module._open(spec))


def files_in(cache_dir: Path) -> list[Path]:
    """What is cached, without the empty files that are locked."""
    return [path for path in cache_dir.iterdir() if path.suffix != ".lock"]


def assert_same(one: Data, other: Data) -> None:
    for name in ("train", "val", "test"):
        assert torch.equal(getattr(one, name).images, getattr(other, name).images)
        assert torch.equal(getattr(one, name).labels, getattr(other, name).labels)
    assert [getattr(one, name) for name in ("classes", "mean", "std", "augment", "warnings", "fingerprint")] == [
        getattr(other, name) for name in ("classes", "mean", "std", "augment", "warnings", "fingerprint")
    ]


def test_a_set_is_decoded_once_and_comes_back_the_same(spec, decoded, cache_dir):
    plain, first, again = uncached(spec), load_data(spec), load_data(spec)
    assert len(decoded) == 2
    assert_same(first, plain)
    assert_same(again, plain)
    assert len(files_in(cache_dir)) == 1


def test_the_fingerprint_is_kept_and_is_the_contents(spec):
    load_data(spec)
    data = load_data(spec)
    assert vars(data)["fingerprint"] == replace(data).fingerprint


def test_fingerprints_stay_what_they_were(parquet_set):
    asked = DataSpec(name=f"parquet:{parquet_set}", val_from="test")
    for _ in range(2):
        assert load_data(asked).fingerprint == "105e2e0e00d190dcfec8b013e388ff39a40f20ecfaf009f5033655ac402aa318"
    assert load_data(DataSpec()).fingerprint == "4a0dd9a2230759197f9392a7751ed68e0a23e05eebea787776a2192b98eab062"


def test_both_first_and_later_loads_are_mapped(spec, cache_dir):
    for _ in range(2):
        data = load_data(spec)
        assert str(cache_dir) in Path("/proc/self/maps").read_text()
        del data


def test_the_digits_are_not_kept(cache_dir):
    load_data(DataSpec())
    assert not cache_dir.exists()


@pytest.mark.parametrize(
    "change",
    [
        *({"seed": 1}, {"train_limit": 50}, {"val_from": "test"}, {"image_size": 8}, {"image_size": None}),
        *({"channels": 1}, {"channels": 3}, {"resize_size": 7}, {"interpolation": "bicubic"}),
    ],
)
def test_all_that_decides_the_pixels_is_told_apart(image_folder, change):
    spec = DataSpec(name=f"imagefolder:{image_folder}", image_size=7)
    files = read_manifest("imagefolder", str(image_folder))
    assert data_key(spec, files) != data_key(replace(spec, **change), files)
    assert data_key(spec, files) == data_key(replace(spec, data_dir="elsewhere"), files)


def test_a_changed_image_is_decoded_anew(image_folder, decoded):
    spec = DataSpec(name=f"imagefolder:{image_folder}", image_size=7)
    before = load_data(spec)
    (image_folder / "val" / "cat" / "00.png").write_bytes((image_folder / "val" / "dog" / "00.png").read_bytes())
    after = load_data(spec)
    assert len(decoded) == 2
    assert after.fingerprint != before.fingerprint
    assert not torch.equal(after.test.images, before.test.images)


def test_one_folder_by_two_names_is_kept_once_and_two_folders_twice(parquet_set, decoded, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(parquet_set)
    monkeypatch.chdir(tmp_path)
    for name in (parquet_set, "link", "./parquet"):
        load_data(DataSpec(name=f"parquet:{name}"))
    assert len(decoded) == 1
    os.rename(parquet_set, tmp_path / "elsewhere")
    load_data(DataSpec(name="parquet:elsewhere"))
    assert len(decoded) == 2


@pytest.mark.parametrize("damage", ["truncated", "foreign", "version", "lacking"])
def test_a_file_that_cannot_be_used_is_written_anew(spec, cache_dir, damage, monkeypatch):
    before = uncached(spec)
    load_data(spec)
    (path,) = files_in(cache_dir)
    if damage == "truncated":
        os.truncate(path, path.stat().st_size - 1)
    elif damage == "foreign":
        path.write_bytes(b"something else")
    else:
        tensors, card = read_cached(path.stem)
        if damage == "version":
            monkeypatch.setattr(cache, "CACHE_VERSION", cache.CACHE_VERSION - 1)
        write_cached(path.stem, tensors if damage == "version" else {"val.images": tensors["val.images"]}, card)
        monkeypatch.setattr(cache, "CACHE_VERSION", CACHE_VERSION)
    assert load_decoded(path.stem) is None
    assert_same(load_data(spec), before)
    assert_same(load_decoded(path.stem), before)
    assert len(files_in(cache_dir)) == 1


def test_a_full_disk_is_a_warning_and_the_data_are_there(parquet_set, cache_dir, full_disk, decoded):
    spec = DataSpec(name=f"parquet:{parquet_set}")
    for _ in range(2):
        with full_disk(), pytest.warns(OvertoneWarning) as told:
            data = load_data(spec)
        assert [warning.filename for warning in told] == [__file__]
        assert re.fullmatch(
            r"cannot cache the decoded images of 'parquet:.*', which will be decoded again: .*File too large.*; "
            r"OVERTONE_CACHE may name a folder with room for them",
            str(told[0].message),
        )
        assert len(data.train) == 108
        assert files_in(cache_dir) == []
    assert len(decoded) == 2


def test_a_folder_that_cannot_be_made_is_a_warning(spec, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("OVERTONE_CACHE", str(tmp_path / "file" / "deep"))
    with pytest.warns(OvertoneWarning, match=r"cannot cache .*: Not a directory"):
        assert len(load_data(spec).train) == 108


def test_what_was_left_out_is_said_at_every_load(image_folder, decoded):
    path = image_folder / "train" / "dog" / "07.png"
    path.write_bytes(path.read_bytes()[:40])
    spec = DataSpec(name=f"imagefolder:{image_folder}", image_size=7)
    for _ in range(3):
        with pytest.warns(OvertoneWarning) as told:
            data = load_data(spec)
        assert [str(warning.message) for warning in told] == [
            f"1 of 108 images of 'imagefolder:{image_folder}' cannot be used and are left out: "
            f"'train/dog/07.png' cannot be decoded"
        ]
        assert len(data.train) == len(data.train.labels) == 107
    assert len(decoded) == 1


def test_what_cannot_be_used_is_not_kept(image_folder, cache_dir):
    for number in range(3):
        (image_folder / "train" / "dog" / f"{number:02}.png").write_bytes(b"rubbish")
    with pytest.raises(OvertoneError, match=r"images of 'imagefolder:.*' cannot be used: .*; at most 1 % of a split"):
        load_data(DataSpec(name=f"imagefolder:{image_folder}", image_size=7))
    assert files_in(cache_dir) == []


def test_of_those_who_ask_at_once_one_decodes(parquet_set, cache_dir, decoded, monkeypatch):
    spec, asked, both = DataSpec(name=f"parquet:{parquet_set}"), data_module.machine_lock, threading.Barrier(2)

    def ask_together(*what):
        both.wait(timeout=30)
        return asked(*what)

    monkeypatch.setattr(data_module, "machine_lock", ask_together)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(load_data, [spec, spec])
    assert len(decoded) == 1
    assert_same(one, other)
    assert len(files_in(cache_dir)) == 1


def test_who_waits_for_long_is_told_what_for(parquet_set, cache_dir, monkeypatch):
    spec, let_go = DataSpec(name=f"parquet:{parquet_set}"), threading.Event()
    decode, begun = data_module._decode, threading.Event()

    def decode_slowly(*given):
        begun.set()
        let_go.wait(timeout=30)
        return decode(*given)

    monkeypatch.setattr(cache, "_PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(data_module, "_decode", decode_slowly)
    monkeypatch.setattr(warnings, "warn", lambda said, *_, **__: (words.append(said), let_go.set()))
    words = []
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(load_data, spec)
        assert begun.wait(timeout=30)
        other = pool.submit(load_data, spec)
        assert_same(one.result(), other.result())
    assert len(words) == 1
    assert words[0].startswith("waiting for another process that decodes these images (it holds ")


def test_where_no_file_can_be_locked_those_who_decode_at_once_agree(parquet_set, cache_dir, monkeypatch):
    spec, decode, both = DataSpec(name=f"parquet:{parquet_set}"), data_module._decode, threading.Barrier(2)

    def decode_together(*given):
        both.wait(timeout=30)
        return decode(*given)

    def refuse(*_):
        raise OSError("no locks here")

    monkeypatch.setattr(cache, "FileLock", refuse)
    monkeypatch.setattr(data_module, "_decode", decode_together)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(load_data, [spec, spec])
    assert_same(one, other)
    assert_same(load_data(spec), one)
    assert len(list(cache_dir.iterdir())) == 1


def test_a_published_set_is_kept_too_wherever_it_lies(monkeypatch, decoded, cache_dir):
    arrays = FakeCifar("", True)
    monkeypatch.setattr("torchvision.datasets.CIFAR10", FakeCifar)
    first, again = (load_data(DataSpec(name="cifar10", data_dir=place)) for place in ("here", "there"))
    assert len(decoded) == 1
    assert_same(first, again)
    assert str(cache_dir) in Path("/proc/self/maps").read_text()
    own = torch.cat([first.train.images, first.val.images]).sum()
    assert own == int(arrays.data.sum())
    load_data(DataSpec(name="cifar10", seed=1))
    assert len(decoded) == 2


class FakeCifar:
    """Stands for torchvision's class: arrays, no download."""

    def __init__(self, root, train, download=False):
        rng = np.random.default_rng(int(train))
        self.data = rng.integers(0, 256, (40 if train else 20, 32, 32, 3), dtype=np.uint8)
        self.targets = [place % 10 for place in range(len(self.data))]
