import pytest

from layers.errors import OvertoneError
from trainers.data import memory


def test_what_fits_passes_and_what_does_not_names_the_way_out(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 10_000)
    memory.check_memory("set", 100, 100)
    with pytest.raises(OvertoneError, match=r"the 101 .* 'set' take .*; --stream decodes .*, --train-limit keeps"):
        memory.check_memory("set", 101, 100)


def test_available_bytes_follow_the_machine():
    assert 1e6 < memory.available_bytes() < 1e15


@pytest.mark.parametrize(("content", "number"), [("1234\n", 1234), ("max\n", None), (None, None)])
def test_a_limit_file_may_hold_no_limit(tmp_path, content, number):
    path = tmp_path / "memory.max"
    if content is not None:
        path.write_text(content)
    assert memory._number(path) == number
