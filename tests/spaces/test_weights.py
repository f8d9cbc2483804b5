import argparse
import datetime
import json
import os
import pickle
import re
import types
from collections import OrderedDict
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.error import URLError

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from layers import OvertoneError, UsageError
from spaces import build_model, load_weights, save_weights, state_sha256
from spaces.weights_source import absolute_weights, split_weights


@pytest.fixture
def model(fill):
    return fill(build_model("resnet8", classes=10, channels=1))


@pytest.fixture
def other(fill):
    return fill(build_model("resnet8", classes=10, channels=1))


@pytest.fixture(params=["safetensors", "pt", "nested"])
def saved(request, model, tmp_path):
    """The model's state in each kind of file, after a change to the mapping."""

    def write(change=lambda state: state) -> str:
        state = change(dict(model.state_dict()))
        if request.param == "safetensors":
            safetensors.torch.save_file(state, tmp_path / "w.safetensors")
            return str(tmp_path / "w.safetensors")
        torch.save({"state_dict": state, "epoch": 3} if request.param == "nested" else state, tmp_path / "w.pth")
        return str(tmp_path / "w.pth")

    return write


def test_weights_come_back_bit_for_bit(saved, model, other, images):
    x = images(4, 1, 8, 8)
    assert not torch.equal(other(x), model(x))
    load_weights(other, saved(), name="resnet8")
    assert torch.equal(other(x), model(x))
    assert state_sha256(other) == state_sha256(model)


def test_batch_counters_may_be_missing(saved, model, other):
    source = saved(lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")})
    load_weights(other, source, name="resnet8")
    assert state_sha256(other) == state_sha256(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "layer2.0.bn1.weight"}, r"they lack 'layer2.0.bn1.weight'$"),
        (lambda s: s | {"linear.weight": torch.zeros(7, 64)}, r"'linear.weight' is \(7, 64\), not \(10, 64\)$"),
        (lambda s: s | {"extra.bias": torch.zeros(1)}, r"which has no 'extra.bias'$"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_filled(change, message, saved, other):
    before, source = state_sha256(other), saved(change)
    with pytest.raises(UsageError, match=rf"^weights '.*' do not fit the model 'resnet8'.*{message}"):
        load_weights(other, source, name="resnet8")
    assert state_sha256(other) == before


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_weights_of_a_wrapped_network_are_those_of_the_network(prefix, saved, model, other):
    source = saved(lambda state: {f"{prefix}{name}": value for name, value in state.items()})
    load_weights(other, source, name="resnet8")
    assert state_sha256(other) == state_sha256(model)


def test_a_network_that_is_a_wrapper_keeps_its_names(model, other, tmp_path):
    one, two = nn.ModuleDict({"module": model}), nn.ModuleDict({"module": other})
    torch.save(one.state_dict(), tmp_path / "w.pt")
    load_weights(two, str(tmp_path / "w.pt"), name="mine:make")
    assert state_sha256(two) == state_sha256(one)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_training_checkpoint_has_weights_within(key, model, other, tmp_path):
    torch.save({key: model.state_dict(), "optimizer": {"state": {}}, "epoch": 3}, tmp_path / "w.pt")
    load_weights(other, str(tmp_path / "w.pt"), name="resnet8")
    assert state_sha256(other) == state_sha256(model)


@pytest.mark.parametrize(
    "content", [[1, 2], {}, {"a": 1}, {"state_dict": {"a": "b"}}, torch.zeros(3), {"a": torch.zeros(2, 2).to_sparse()}]
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_what_is_no_state_dict_is_refused(content, model, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(
        UsageError,
        match=r"weights \(='.*'\) must be a state dict, a mapping of names to dense tensors; it holds [^\n]+$",
    ):
        load_weights(model, str(tmp_path / "w.pth"), name="resnet8")


class _Intruder:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("write", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj, 2))])
def test_code_in_a_file_is_not_run(name, write, model, tmp_path):
    trap = tmp_path / "ran"
    write({"conv1.weight": _Intruder(str(trap))}, tmp_path / name)
    with pytest.raises(OvertoneError, match=r"^cannot read weights from ") as caught:
        load_weights(model, str(tmp_path / name), name="resnet8")
    assert "\n" not in str(caught.value)
    assert not trap.exists()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_damaged_files_are_refused_in_one_sentence(suffix, model, tmp_path, rng):
    path = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save(model.state_dict(), path)
    else:
        safetensors.torch.save_file(model.state_dict(), path)
    whole = path.read_bytes()
    broken = [b"", b"\x00", b"hello world\n" * 9, b"\x80\x02}", rng.randbytes(1000), whole[: len(whole) // 2]]
    broken += [whole[: rng.randrange(len(whole))] for _ in range(5)] + [whole[:100], rng.randbytes(64) + whole[64:]]
    before = state_sha256(model)
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(OvertoneError, match=r"^[^\n]*(cannot read weights from|must be a state dict)[^\n]*$"):
            load_weights(model, str(path), name="resnet8")
    assert state_sha256(model) == before


@pytest.mark.parametrize(
    ("source", "name"),
    [("gone.pth", "resnet8"), ("", "resnet8"), ("IMAGENET1K_V9", "resnet18"), ("IMAGENET1K_V1", "pkg.mod:make")],
)
def test_neither_file_nor_torchvision_name(source, name, model):
    with pytest.raises(UsageError, match=rf"weights \(='{source}'\) must be a file or one of torchvision's names for"):
        load_weights(model, source, name=name)


def test_folder_is_no_file(model, tmp_path):
    with pytest.raises(UsageError, match=r"must be a file or one of torchvision's names for 'resnet8'$"):
        load_weights(model, str(tmp_path), name="resnet8")


def test_torchvision_names_are_downloaded(monkeypatch, fill):
    source, target = (fill(build_model("squeezenet1_1", classes=1000, channels=3)) for _ in range(2))
    asked = []

    def download(url: str, *args, **kwargs):
        asked.append(url)
        return source.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    load_weights(target, "IMAGENET1K_V1", name="squeezenet1_1")
    assert state_sha256(target) == state_sha256(source)
    assert len(asked) == 1
    assert "squeezenet1_1" in asked[0]


def test_failing_download_is_one_sentence(monkeypatch, model):
    def download(*args, **kwargs):
        raise URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    with pytest.raises(OvertoneError, match=r"^cannot download the weights 'IMAGENET1K_V1' of 'resnet18': .*no route"):
        load_weights(model, "IMAGENET1K_V1", name="resnet18")


def test_saved_weights_hold_the_state_and_the_metadata(model, other, tmp_path):
    path = tmp_path / "new" / "folder" / "w.safetensors"
    save_weights(model, path, {"model": "resnet8"})
    load_weights(other, str(path), name="resnet8")
    assert state_sha256(other) == state_sha256(model)
    with safetensors.safe_open(str(path), "pt") as file:
        assert file.metadata() == {"overtone": json.dumps({"model": "resnet8"})}
    assert [entry.name for entry in path.parent.iterdir()] == ["w.safetensors"]


def test_failed_write_leaves_nothing_behind(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OvertoneError, match=r"^cannot write weights to '.*file/w.safetensors': "):
        save_weights(model, tmp_path / "file" / "w.safetensors", {})
    (tmp_path / "w.safetensors").mkdir()
    with pytest.raises(OvertoneError, match=r"^cannot write weights to "):
        save_weights(model, tmp_path / "w.safetensors", {})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "w.safetensors"]


def test_interrupted_write_leaves_the_old_file(model, other, tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(model, path, {})
    before = path.read_bytes()

    def fail(*args):
        raise OSError("no room")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OvertoneError, match=rf"^cannot write weights to '{path}': no room$"):
        save_weights(other, path, {})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"]


def test_hash_depends_on_every_value_and_on_nothing_else(model, other):
    before = state_sha256(model)
    assert state_sha256(other) != before
    model.bn1.num_batches_tracked += 5
    assert state_sha256(model) == before
    assert state_sha256(model.to(memory_format=torch.channels_last)) == before
    hashes = {before}
    for value in (model.conv1.weight, model.bn1.running_var, model.linear.bias):
        with torch.no_grad():
            value.view(-1)[0] += 0.5
        hashes.add(state_sha256(model))
    hashes.add(state_sha256(model.double()))
    assert len(hashes) == 5


def test_hash_tells_shapes_apart(fill):
    wide, tall = fill(nn.Linear(2, 3, bias=False)), nn.Linear(3, 2, bias=False)
    tall.weight.data = wide.weight.data.view(2, 3)
    assert state_sha256(wide) != state_sha256(tall)


def _written(path, content):
    torch.save(content, path)
    return str(path)


def _unlike(state, generator):
    """The same names with other values, as a moving average has."""
    return {k: v + torch.rand(v.shape, generator=generator) if v.is_floating_point() else v for k, v in state.items()}


def test_weights_are_found_under_any_keys_and_prefix(model, other, tmp_path, rng, generator):
    words = ["net", "network", "state_dict", "model", "module", "generator", "params", "backbone", "a-b", "x.y"]
    for _ in range(12):
        keys, prefixes = rng.choices(words, k=rng.randrange(4)), rng.choices(words, k=rng.randrange(3))
        content = {".".join([*prefixes, name]): value for name, value in model.state_dict().items()}
        for key in keys:
            content = {key: content, "epoch": 3, "best": torch.tensor(0.5), "optimizer": {"state": {0: torch.ones(2)}}}
        source = _written(tmp_path / "w.ckpt", content)
        load_weights(other, source, name="resnet8")
        assert state_sha256(other) == state_sha256(model), (keys, prefixes)
        named = ".".join([*reversed(keys), *prefixes])
        if named:
            other.load_state_dict(_unlike(other.state_dict(), generator))
            load_weights(other, f"{source}#{named}", name="resnet8")
            assert state_sha256(other) == state_sha256(model), (keys, prefixes)


@pytest.mark.parametrize("prefixed", [False, True])
def test_an_average_beside_the_weights_must_be_chosen(model, other, tmp_path, prefixed, generator):
    state, average = model.state_dict(), _unlike(model.state_dict(), generator)
    if prefixed:
        both = {f"model.{k}": v for k, v in state.items()} | {f"ema.{k}": v for k, v in average.items()}
        content, names = {"state_dict": both}, ("state_dict.model", "state_dict.ema")
    else:
        content, names = {"state_dict": state, "ema": average}, ("state_dict", "ema")
    source = _written(tmp_path / "w.ckpt", content)
    before = state_sha256(other)
    with pytest.raises(
        UsageError, match=rf"must say which network of the file is meant, as FILE#KEY: '{names[0]}', '{names[1]}'$"
    ):
        load_weights(other, source, name="resnet8")
    assert state_sha256(other) == before
    for name, expected in zip(names, (state, average), strict=True):
        load_weights(other, f"{source}#{name}", name="resnet8")
        assert torch.equal(other.conv1.weight, expected["conv1.weight"])
    with pytest.raises(UsageError, match=rf"must name a key of the file, which has '{names[0]}', '{names[1]}'$"):
        load_weights(other, f"{source}#student", name="resnet8")


def test_the_same_weights_twice_are_no_choice(model, other, tmp_path):
    copy = {name: value.clone() for name, value in model.state_dict().items()}
    load_weights(other, _written(tmp_path / "w", {"model": model.state_dict(), "best": copy}), name="resnet8")
    assert state_sha256(other) == state_sha256(model)


def test_an_average_of_torchs_own_kind_is_read(model, other, tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(model)
    load_weights(other, _written(tmp_path / "w", averaged.state_dict()), name="resnet8")
    assert state_sha256(other) == state_sha256(model)


def test_parts_beside_the_network_are_passed_over_only_when_it_is_named(model, other, tmp_path):
    parts = {f"model.{k}": v for k, v in model.state_dict().items()} | {"criterion.weight": torch.ones(10)}
    source = _written(tmp_path / "w.ckpt", {"state_dict": parts})
    for given in (source, f"{source}#state_dict"):
        with pytest.raises(
            UsageError, match=r"has no 'criterion.weight'; FILE#state_dict.model takes 'state_dict.model' alone$"
        ):
            load_weights(other, given, name="resnet8")
    load_weights(other, f"{source}#state_dict.model", name="resnet8")
    assert state_sha256(other) == state_sha256(model)


def test_plain_data_beside_the_weights_are_read(model, other, tmp_path):
    now = datetime.datetime(2024, 5, 17, 12, 30, tzinfo=datetime.UTC)
    beside = {
        "args": argparse.Namespace(lr=0.1, out=Path("runs"), betas=(0.9, 0.99)),
        "best": np.float64(0.91),
        "steps": np.int64(3),
        "dtype": np.dtype("float32"),
        "path": PurePosixPath("/a/b"),
        "windows": PureWindowsPath("C:/a"),
        "times": [now, now.date(), datetime.timedelta(seconds=3)],
        "more": types.SimpleNamespace(a=1),
        "ordered": OrderedDict(a=1),
    }
    for key, value in beside.items():
        torch.save({"net": model.state_dict(), key: value}, tmp_path / "w.pth")
        other.conv1.weight.data.zero_()
        load_weights(other, str(tmp_path / "w.pth"), name="resnet8")
        assert state_sha256(other) == state_sha256(model), key


def test_a_whole_pickled_network_is_refused_by_its_class(model, tmp_path):
    for content in (model, {"net": model}):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(
            OvertoneError, match=r"it holds an object of spaces\.zoo\.CifarResNet, whose code is not run"
        ):
            load_weights(model, str(tmp_path / "w.pth"), name="resnet8")


@pytest.mark.parametrize("suffix", ["", ".safetensors", ".pth", ".bin", ".ckpt#1"])
def test_a_file_is_judged_by_its_content(suffix, model, other, tmp_path):
    state = model.state_dict()
    writers = {
        "safetensors": lambda path: safetensors.torch.save_file(state, path),
        "zip": lambda path: torch.save(state, path),
        "legacy": lambda path: torch.save(state, path, _use_new_zipfile_serialization=False),
    }
    for kind, write in writers.items():
        write(tmp_path / f"w{suffix}")
        other.conv1.weight.data.zero_()
        load_weights(other, str(tmp_path / f"w{suffix}"), name="resnet8")
        assert state_sha256(other) == state_sha256(model), kind


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_integers_are_no_weights(dtype, saved, other):
    before = state_sha256(other)
    source = saved(lambda state: state | {"layer1.0.conv1.weight": torch.ones(16, 16, 3, 3, dtype=dtype)})
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(
        UsageError, match=rf"'layer1.0.conv1.weight' is {kind}, not float32, as in a quantized checkpoint$"
    ):
        load_weights(other, source, name="resnet8")
    assert state_sha256(other) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_weights(dtype, saved, model, other):
    load_weights(
        other,
        saved(lambda state: {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}),
        name="resnet8",
    )
    assert torch.equal(other.conv1.weight, model.conv1.weight.to(dtype).float())


def test_a_misfit_names_what_the_file_has(model, tmp_path):
    foreign = {f"features.{n}.weight": torch.ones(2) for n in range(9)}
    with pytest.raises(
        UsageError, match=r"they lack 'conv1.weight'; they are 'features.0.weight', .*'features.5.weight', \.\.\.$"
    ):
        load_weights(model, _written(tmp_path / "w", {"state_dict": foreign}), name="resnet8")
    part = {k: v for k, v in model.state_dict().items() if k != "linear.bias"}
    content = {"student": part, "teacher": dict(list(part.items())[:9])}
    with pytest.raises(
        UsageError, match=r"they lack 'linear.bias'; the file has 'student', 'teacher', of which FILE#KEY"
    ):
        load_weights(model, _written(tmp_path / "w", content), name="resnet8")


def test_weights_are_the_same_from_another_folder(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"ema": model.state_dict()}, "w.ckpt")
    assert absolute_weights("w.ckpt") == str(tmp_path / "w.ckpt")
    assert absolute_weights("w.ckpt#ema") == f"{tmp_path / 'w.ckpt'}#ema"
    assert [absolute_weights(name) for name in ("DEFAULT", "no#file", "#", "")] == ["DEFAULT", "no#file", "#", ""]
    Path("w.ckpt#ema").touch()
    assert split_weights("w.ckpt#ema") == (Path("w.ckpt#ema"), "")


@pytest.mark.parametrize(("code", "named"), [(os.system, "posix.system"), (partial(print, 1), "functools.partial")])
def test_code_beside_the_weights_is_refused_by_its_name(code, named, model, tmp_path):
    with pytest.raises(OvertoneError, match=rf"it holds an object of {re.escape(named)}, whose code is not run$"):
        load_weights(model, _written(tmp_path / "w", {"net": model.state_dict(), "hook": code}), name="resnet8")
