import os

import pytest

from layers.errors import UsageError
from trainers.data.manifest import content_sha256, file_sizes, read_manifest


@pytest.fixture
def folder(tmp_path):
    for name in ("train/dog/b.png", "train/cat/deep/a.png", "val/dog/c.png", "other/d.png", "train-0.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "val" / "empty").mkdir()
    return tmp_path


def names(kind, folder):
    return [name for name, _, _ in read_manifest(kind, str(folder))]


def test_an_imagefolder_is_all_below_train_and_val(folder):
    assert names("imagefolder", folder) == [
        "train/cat/",
        "train/cat/deep/",
        "train/cat/deep/a.png",
        "train/dog/",
        "train/dog/b.png",
        "val/dog/",
        "val/dog/c.png",
        "val/empty/",
    ]


def test_a_parquet_set_is_its_shards(folder):
    (folder / "test-00000.parquet").write_bytes(b"12")
    (folder / "README.md").write_text("no data")
    assert names("parquet", folder) == ["test-00000.parquet", "train-0.parquet"]
    assert read_manifest("parquet", str(folder))[0][1] == 2


@pytest.mark.parametrize("change", ["size", "time", "new", "gone", "renamed", "class"])
def test_every_change_of_a_file_shows(folder, change):
    before, path = read_manifest("imagefolder", str(folder)), folder / "train" / "dog" / "b.png"
    assert read_manifest("imagefolder", str(folder)) == before
    found = path.stat()
    if change == "size":
        path.write_bytes(b"longer than before")
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    elif change == "time":
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1000))
    elif change == "new":
        (path.parent / "z.png").touch()
    elif change == "gone":
        path.unlink()
    elif change == "renamed":
        path.rename(path.with_name("bb.png"))
    else:
        (folder / "train" / "emu").mkdir()
    assert read_manifest("imagefolder", str(folder)) != before


def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch):
    for kind in ("parquet", "imagefolder"):
        with pytest.raises(UsageError, match=r"^cannot read the folder 'aaa.*': File name too long$"):
            read_manifest(kind, "a" * 300)
    scan = os.scandir

    def locked(path):
        if os.fspath(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(UsageError, match=r"^cannot read the folder '.*/train/dog': Permission denied$"):
        read_manifest("imagefolder", str(folder))


def test_sizes_and_content_are_of_one_part_and_know_no_time(folder):
    files = read_manifest("imagefolder", str(folder))
    assert file_sizes(files, "val") == (("val/dog/", 0), ("val/dog/c.png", 13), ("val/empty/", 0))
    later = [(name, size, time + 1) for name, size, time in files]
    assert content_sha256(later, "train") == content_sha256(files, "train") != content_sha256(files, "val")
    changed = [(name, size + 1, time) for name, size, time in files]
    assert content_sha256(changed, "train") != content_sha256(files, "train")


def test_what_is_not_there_is_no_error(folder):
    assert read_manifest("parquet", "/no/such") == read_manifest("imagefolder", "/no/such") == []
    (folder / "train" / "dog" / "link.png").symlink_to("/no/such")
    assert ("train/dog/link.png", -1, -1) in read_manifest("imagefolder", str(folder))
