import io
import os
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from layers.errors import OvertoneError, UsageError
from results.ledger.ledger import Ledger
from results.ledger.store import MissingFile, Store


class ContractOfStores:
    """What every kind of store does alike."""

    def test_reads_what_was_written_and_replaces_it(self, store, np_rng):
        first, second = np_rng.bytes(10_000), np_rng.bytes(7)
        store.write_bytes("a/b/file.bin", first)
        assert store.read_bytes("a/b/file.bin") == first
        store.write_bytes("a/b/file.bin", second)
        assert store.read_bytes("a/b/file.bin") == second

    def test_exists_says_files_alone(self, store):
        assert not store.exists("a/file.bin")
        store.write_bytes("a/file.bin", b"")
        assert store.exists("a/file.bin")
        assert not store.exists("a")

    def test_list_names_the_files_of_one_folder(self, store):
        assert store.list("none") == []
        for name in ("t/z.parquet", "t/a.parquet", "t/a.json", "t/sub/b.parquet", "t/.hidden.parquet", "u/c.parquet"):
            store.write_bytes(name, b"x")
        assert store.list("t", ".parquet") == ["t/a.parquet", "t/z.parquet"]
        assert store.list("t/") == ["t/a.json", "t/a.parquet", "t/z.parquet"]

    def test_opens_a_file_to_read_a_part(self, store, np_rng):
        data = np_rng.bytes(1000)
        store.write_bytes("a/file.bin", data)
        with store.open("a/file.bin") as file:
            file.seek(100)
            assert file.read(50) == data[100:150]
        with pytest.raises(MissingFile, match=r"^cannot read '.*x/gone\.bin': it does not exist$"):
            store.open("x/gone.bin")

    def test_deletes_a_file_once_and_again(self, store):
        store.write_bytes("a/file.bin", b"x")
        store.delete("a/file.bin")
        assert not store.exists("a/file.bin")
        store.delete("a/file.bin")

    def test_moves_a_file_over_another(self, store):
        store.write_bytes("a/file.bin", b"new")
        store.write_bytes("b/c/file.bin", b"old")
        for to in ("b/c/file.bin", "d/new.bin"):
            store.move("a/file.bin", to)
            assert store.read_bytes(to) == b"new"
            assert not store.exists("a/file.bin")
            store.write_bytes("a/file.bin", b"new")
        with pytest.raises(OvertoneError, match=r"^cannot move '.*x/gone\.bin': .*not exist"):
            store.move("x/gone.bin", "x/here.bin")

    def test_missing_file_is_one_sentence_naming_it(self, store):
        with pytest.raises(OvertoneError, match=r"^cannot read '.*x/gone\.bin': it does not exist$"):
            store.read_bytes("x/gone.bin")


class TestLocal(ContractOfStores):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return Store(tmp_path / "runs")

    def test_opening_creates_nothing(self, store, tmp_path):
        store.list("trials")
        assert list(tmp_path.iterdir()) == []

    def test_path_of_is_the_real_place(self, store):
        store.write_bytes("a/b.txt", b"hello")
        assert Path(store.path_of("a/b.txt")).read_bytes() == b"hello"

    def test_store_that_is_a_file_is_refused(self, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(
            OvertoneError, match=r"store \(='.*file'\) must be a folder or a URI such as s3://bucket/prefix, not"
        ):
            Store(tmp_path / "file")

    def test_store_under_a_file_is_refused_when_written(self, tmp_path):
        (tmp_path / "file").write_text("x")
        store = Store(tmp_path / "file" / "runs")
        with pytest.raises(OvertoneError, match=r"^cannot write '.*/file/runs/a\.txt': Not a directory$"):
            store.write_bytes("a.txt", b"x")

    @pytest.mark.parametrize("call", ["fsync", "replace"])
    def test_failed_write_leaves_the_old_file_and_no_other(self, store, tmp_path, monkeypatch, call):
        store.write_bytes("a/file.txt", b"old")

        def fail(*_: object) -> None:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(os, call, fail)
        with pytest.raises(OvertoneError, match=r"cannot write '.*a/file.txt': Read-only file system"):
            store.write_bytes("a/file.txt", b"new")
        assert [path.name for path in (tmp_path / "runs" / "a").iterdir()] == ["file.txt"]
        assert store.read_bytes("a/file.txt") == b"old"

    def test_content_is_synced_before_it_is_named_and_the_folder_after(self, store, monkeypatch):
        steps = []
        fsync, replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", lambda descriptor: (steps.append("fsync"), fsync(descriptor)))
        monkeypatch.setattr(os, "replace", lambda *paths: (steps.append("replace"), replace(*paths)))
        store.write_bytes("file.txt", b"x")
        assert steps == ["fsync", "replace", "fsync"]


class TestFileUri(TestLocal):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return Store(f"file://{tmp_path}/runs%20here/../runs")

    def test_path_of_is_the_real_place(self, store, tmp_path):
        assert store.path_of("a").startswith("file:///")
        (tmp_path / "runs here").mkdir()
        store.write_bytes("a", b"x")
        assert (tmp_path / "runs" / "a").exists()


class TestRemote(ContractOfStores):
    """pyarrow's in-memory file system: the path that a remote system without atomic puts takes."""

    @pytest.fixture
    def store(self) -> Store:
        return Store("mock:///bucket/prefix")

    def test_nothing_unfinished_is_left(self, store):
        store.write_bytes("a/file.bin", b"x")
        names = [info.base_name for info in store._files._fs.get_file_info(pafs.FileSelector("bucket", recursive=True))]
        assert sorted(names) == ["a", "file.bin", "prefix"]


@pytest.mark.slow
class TestS3(ContractOfStores):
    """The real protocol, against moto's server on this machine."""

    @pytest.fixture
    def store(self, s3_store: Store) -> Store:
        return s3_store

    def test_credentials_are_never_shown(self, store):
        assert store.path_of("a.txt") == "s3://bucket/prefix/a.txt"


@pytest.mark.parametrize("uri", ["foo://bucket/x", "s3:///x", "s3://"])
def test_uri_that_cannot_be_opened_is_one_sentence(uri):
    with pytest.raises(UsageError, match=rf"(open store '{uri}': |store \(='{uri}'\) must name a bucket)") as caught:
        Store(uri)
    assert "\n" not in str(caught.value)


def test_empty_store_is_refused():
    with pytest.raises(UsageError, match=r"store \(=''\) must be a folder or a URI"):
        Store("")


@pytest.mark.parametrize(
    "uri",
    [
        *(
            "file://runs",
            "file://host/runs",
            "file:runs",
            "file:/runs",
            "file://",
            "file:///a b",
            "file:///é",
            "file:///a?b",
        ),
        *(
            "file:///a#b",
            "file:///a%0Ab",
            "file:///a%zz",
            "s3:bucket",
            "s3:/bucket/x",
            "gs:x",
            "old:runs",
            "s3://b/a//c",
        ),
        *(
            "s3://b/../c",
            "s3://b/a/.",
            "s3://b/my prefix",
            "s3://b/my%20prefix",
            "s3://b/a#c",
            "s3://b/é",
            "gs://b/./c",
        ),
        *("gs:///x", "gs://", "http://x/y", "FILE:///a", " runs", "runs ", "a\nb", "a\0b", "\udcff", "runs*", "run[1]"),
        *("seed=7/runs", "/data/Study=x", "s3://b/trial=3", "file:///status%3Dx/runs", "~nobody-of-this-name/runs"),
    ],
)
def test_a_place_that_readers_take_for_others_is_refused(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one sentence, before anything is opened or written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"^(store \(='.*'\) must |cannot open store ').*[^.]$"):
        Store(uri).write_bytes("a", b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "uri",
    [
        "runs",
        "runs/",
        "./runs",
        "./old:runs",
        "../x/runs",
        "my runs/rüns 日",
        "~/runs",
        "lr=0.1/runs",
        "file://{}/a%20b",
    ],
)
def test_a_place_is_the_same_for_readers(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path / "x")
    monkeypatch.setenv("HOME", str(tmp_path))
    uri = uri.format(tmp_path)
    store = Store(uri)
    path = "trials/study=demo/a.parquet"
    sink = io.BytesIO()
    pq.write_table(pa.table({"trial": ["abc"]}), sink)
    store.write_bytes(path, sink.getvalue())
    frame = pd.read_parquet(f"{store.label.rstrip('/')}/trials", filters=[("study", "=", "demo")])
    assert frame["trial"].tolist() == ["abc"]
    if not uri.startswith("file:"):
        found = duckdb.execute(
            f"SELECT trial FROM '{store.label.rstrip('/')}/trials/**/*.parquet' WHERE study = 'demo'"
        )
        assert found.fetchall() == [("abc",)]


def test_a_relative_store_may_lie_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers, which have another working directory, open it by its whole path."""
    folder = tmp_path / "seed=7 [a]"
    folder.mkdir()
    monkeypatch.chdir(folder)
    store = Store("runs")
    (folder / "model.bin").write_bytes(b"x")
    digest = Ledger(store).put_model(folder / "model.bin")
    whole = str((folder / "runs").resolve())
    assert Store(whole, check=False).read_bytes(f"models/{digest}.safetensors") == b"x"
    with pytest.raises(UsageError, match=r"store \(='.*'\) must not hold \*, \? or \["):
        Store(whole)


def test_a_bucket_of_google_opens() -> None:
    assert [Store(uri).label for uri in ("gs://bucket", "gs://bucket/a/b/")] == ["gs://bucket", "gs://bucket/a/b/"]


def test_unreadable_uri_does_not_show_its_password():
    with pytest.raises(UsageError, match="cannot open store 'foo://bucket/x': ") as caught:
        Store("foo://user:secret@bucket/x?client_secret=hidden")
    assert "secret" not in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert caught.value.__suppress_context__  # a traceback does not show pyarrow's text either
