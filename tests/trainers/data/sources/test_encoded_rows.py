import pyarrow as pa
import pytest

from trainers.data.sources import encoded_rows
from trainers.data.sources.encoded_rows import open_rows, write_rows
from trainers.runtime.cache import cache_key, cached_path

KEY = cache_key("rows of a test")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERTONE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def rows(rng) -> list[bytes]:
    """Of many lengths, some empty."""
    return [rng.randbytes(rng.choice([0, 1, 10, 3000])) for _ in range(101)]


def batches(rows, sizes=(1, 50, 0, 30, 20)):
    first = 0
    for size in sizes:
        yield pa.array(rows[first : first + size], pa.binary())
        first += size


def test_every_row_comes_back_wherever_it_lies(rows):
    assert open_rows(KEY) is None
    write_rows(KEY, batches(rows))
    found = open_rows(KEY)
    assert len(found) == 101
    assert [found[row] for row in reversed(range(101))] == rows[::-1]


def test_a_null_is_empty():
    write_rows(KEY, [pa.array([None, b"x"], pa.binary())])
    assert [open_rows(KEY)[row] for row in (0, 1)] == [b"", b"x"]


@pytest.mark.parametrize("keep", [0, 8, 0.5, -1])
def test_a_truncated_file_is_not_there(rows, keep):
    write_rows(KEY, batches(rows))
    path = cached_path(KEY, "arrow")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    assert open_rows(KEY) is None


def test_a_foreign_file_and_another_version_are_not_there(rows, folder, monkeypatch):
    folder.mkdir()
    table = pa.table({"bytes": rows})
    with pa.OSFile(str(cached_path(KEY, "arrow")), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    assert open_rows(KEY) is None
    write_rows(KEY, batches(rows))
    assert open_rows(KEY) is not None
    monkeypatch.setattr(encoded_rows, "CACHE_VERSION", -1)
    assert open_rows(KEY) is None


def test_a_file_that_does_not_fit_leaves_nothing(rows, folder, full_disk):
    with full_disk(), pytest.raises(OSError, match="File too large"):
        write_rows(KEY, batches(rows * 4, (404,)))
    assert list(folder.iterdir()) == []
