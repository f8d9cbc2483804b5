import os

import pytest
import safetensors.torch
import torch

from layers.files import atomic_write


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_whoever_may_read_a_new_file_may_read_what_safetensors_wrote(tmp_path, umask):
    path, tensors = tmp_path / "a", {"x": torch.zeros(2)}
    before = os.umask(umask)
    try:
        atomic_write(path, lambda scratch: safetensors.torch.save_file(tensors, scratch))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "a"
    path.write_text("before")

    def fail(scratch):
        scratch.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, fail)
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
