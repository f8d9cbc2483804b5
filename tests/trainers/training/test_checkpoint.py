import json
import os

import pytest
import safetensors.torch
import torch

from layers.errors import OvertoneError, UsageError
from trainers.training.checkpoint import read_checkpoint, write_checkpoint

IDENTITY = {"model": "resnet8", "milestones": (3.0,), "seed": 0}
STATE = {
    "done": 2,
    "history": [{"epoch": 1, "score": 0.1}],
    "model": {"a/b.weight": torch.arange(6.0).view(2, 3).t(), "count": torch.tensor(7)},
    "ema": {},
    "half": {"x": torch.tensor([1.5], dtype=torch.bfloat16)},
}


def test_a_state_comes_back_as_it_was(tmp_path):
    write_checkpoint(tmp_path / "new" / "c.safetensors", IDENTITY, STATE)
    found = read_checkpoint(tmp_path / "new" / "c.safetensors", IDENTITY)
    assert found.keys() == STATE.keys()
    assert (found["done"], found["history"], found["ema"]) == (2, STATE["history"], {})
    for group in ("model", "half"):
        assert found[group].keys() == STATE[group].keys()
        for name, value in STATE[group].items():
            assert found[group][name].dtype == value.dtype
            assert torch.equal(found[group][name], value)
    assert os.listdir(tmp_path / "new") == ["c.safetensors"]


def test_tensors_that_share_memory_are_each_kept(tmp_path):
    shared = torch.ones(3)
    write_checkpoint(tmp_path / "c", {}, {"model": {"a": shared, "b": shared}})
    assert read_checkpoint(tmp_path / "c", {})["model"].keys() == {"a", "b"}


def test_another_trainings_checkpoint_is_refused(tmp_path):
    write_checkpoint(tmp_path / "c", IDENTITY, STATE)
    with pytest.raises(UsageError, match=r"c' is the checkpoint of a training with seed 0, not 1; delete it to"):
        read_checkpoint(tmp_path / "c", {**IDENTITY, "seed": 1})
    with pytest.raises(UsageError, match=r"with lr None, not 0.1"):
        read_checkpoint(tmp_path / "c", {**IDENTITY, "lr": 0.1})
    with pytest.raises(UsageError, match=r"with seed 0, not None"):
        read_checkpoint(tmp_path / "c", {name: IDENTITY[name] for name in ("model", "milestones")})


@pytest.mark.parametrize("damage", ["empty", "cut", "foreign", "no json", "no identity", "missing"])
def test_a_damaged_file_is_one_sentence(tmp_path, damage):
    path = tmp_path / "c"
    write_checkpoint(path, IDENTITY, STATE)
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    elif damage == "foreign":
        safetensors.torch.save_file({"x": torch.ones(1)}, path)
    elif damage == "no json":
        safetensors.torch.save_file({"x": torch.ones(1)}, path, {"overtone": "{"})
    elif damage == "no identity":
        about = {"format": 1, "identity": [1], "groups": [], "plain": {}}
        safetensors.torch.save_file({"x": torch.ones(1)}, path, {"overtone": json.dumps(about)})
    else:
        path.unlink()
    with pytest.raises(OvertoneError, match="c' is not a readable checkpoint; delete it to start anew"):
        read_checkpoint(path, IDENTITY)


def test_a_newer_format_is_named(tmp_path):
    about = {"format": 9, "identity": {}, "groups": [], "plain": {}}
    safetensors.torch.save_file({}, tmp_path / "c", {"overtone": json.dumps(about)})
    with pytest.raises(OvertoneError, match="is a checkpoint of format 9; this Overtone reads 1"):
        read_checkpoint(tmp_path / "c", {})


def test_what_cannot_be_written_leaves_the_last_one(tmp_path):
    write_checkpoint(tmp_path / "c", {}, {"done": 1})
    (tmp_path / "folder" / "x").mkdir(parents=True)
    with pytest.raises(OvertoneError, match=r"cannot write the checkpoint '.*folder': "):
        write_checkpoint(tmp_path / "folder", {}, {"done": 2})
    assert sorted(os.listdir(tmp_path)) == ["c", "folder"]
    assert read_checkpoint(tmp_path / "c", {})["done"] == 1


@pytest.mark.parametrize("end", ["full", "interrupted"])
def test_a_write_that_ends_early_leaves_the_last_one_and_nothing_else(tmp_path, full_disk, monkeypatch, end):
    write_checkpoint(tmp_path / "c", {}, {"done": 1})
    large = {"done": 2, "model": {"x": torch.zeros(100_000)}}
    if end == "full":
        with full_disk(), pytest.raises(OvertoneError, match=r"cannot write the checkpoint .*File too large"):
            write_checkpoint(tmp_path / "c", {}, large)
    else:
        monkeypatch.setattr("os.fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(tmp_path / "c", {}, large)
    assert os.listdir(tmp_path) == ["c"]
    assert read_checkpoint(tmp_path / "c", {})["done"] == 1


def interrupt(*_):
    raise KeyboardInterrupt
