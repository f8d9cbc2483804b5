"""Files timed where they run, alone and by turns."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from layers import OvertoneError, UsageError, compress_model
from overtone import bench
from search.commands.cli import run
from spaces import build_model, save_model
from tests.trainers.runtime.files import IMAGE, write_onnx, write_pt2
from trainers.runtime import runtimes

FEW: dict[str, Any] = {"batches": [2], "budget_s": 0.0}


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path, network = tmp_path / "model.safetensors", compress_model(build_model("resnet8", classes=10, channels=1), {})
    save_model(network, path, card={"model": "resnet8", "classes": 10, "channels": 1, "image_size": [8, 8]})
    return path


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("function", [False, True])
def test_an_onnx_file_is_timed_in_either_runtime(tmp_path: Path, runtime: str, function: bool) -> None:
    """OpenVINO refuses functions; the file stays as it is."""
    path = write_onnx(tmp_path / "model.onnx", function=function)
    before = path.read_bytes()
    answer = bench(path, runtime=runtime, **FEW)
    (file,) = answer["files"]
    assert (file["runtime"], file["bytes"], list(answer["versions"])) == (runtime, len(before), [runtime])
    assert 0 < file["latency_ms"]["2"] < 1000
    assert answer["ratios"] == {}
    assert path.read_bytes() == before


def test_packed_files_and_programs_are_timed_in_torch(packed: Path, tmp_path: Path) -> None:
    program = write_pt2(tmp_path / "model.pt2", nn.Conv2d(1, 4, 3), torch.zeros(2, 1, 8, 8))
    answer = bench(packed, program, **FEW)
    assert [file["runtime"] for file in answer["files"]] == ["torch", "torch"]
    first, second = (file["latency_ms"]["2"] for file in answer["files"])
    ratio = answer["ratios"]["2"]
    assert first > second  # nine layers against one
    assert ratio["low"] <= ratio["ratio"] <= ratio["high"]
    assert (answer["threads"], answer["rounds"]) == (1, {"2": 7})


def test_the_command_tells_files_ratios_and_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(write_onnx(tmp_path / f"{name}.onnx")) for name in "ab"]
    assert run(["bench", files[0], "--against", files[1], "--batch", "1", "--batch", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == [*files, "batch 1", "batch 3"]
    assert lines[3].endswith(f"x the time of {files[1]} (95 % interval {lines[3].split('interval ')[1]}")
    assert lines[4].endswith(f", 1 thread, onnxruntime {__import__('onnxruntime').__version__}; medians")
    assert run(["bench", files[0], "--batch", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["latency_ms"].keys() == {"1"}


@pytest.mark.parametrize("suffix", ["onnx", "pt2", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_a_file_that_is_no_model_is_one_sentence(
    packed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], suffix: str, content: bytes | None
) -> None:
    """Whatever runs it; None is a file that was cut off."""
    whole = {
        "onnx": lambda: write_onnx(tmp_path / "w.onnx"),
        "pt2": lambda: write_pt2(tmp_path / "w.pt2", nn.ReLU(), torch.zeros(2, 3)),
        "safetensors": lambda: packed,
    }[suffix]
    path = tmp_path / f"bad.{suffix}"
    path.write_bytes(whole().read_bytes()[:-60] if content is None else content)
    capfd.readouterr()
    for runtime in ("onnxruntime", "openvino") if suffix == "onnx" else ("torch",):
        with pytest.raises(OvertoneError, match=rf"^cannot run '\S+bad.{suffix}' in {runtime}: [^\n]+[^.\n]$"):
            bench(path, runtime=runtime)
    assert capfd.readouterr() == ("", "")


def test_networks_that_take_no_batch_of_images_are_refused(tmp_path: Path) -> None:
    two, free = write_onnx(tmp_path / "2.onnx", [IMAGE, IMAGE]), write_onnx(tmp_path / "free.onnx", [("n", 3, "h", 6)])
    whole = write_onnx(tmp_path / "int.onnx", type=onnx.TensorProto.INT64)
    for runtime in ("onnxruntime", "openvino"):
        for path in (two, whole):
            with pytest.raises(OvertoneError, match=f" in {runtime}: it takes "):
                bench(path, runtime=runtime)
        with pytest.raises(OvertoneError, match=r"it takes \(\w+, 3, \w+, 6\), where an image has a size of its own$"):
            bench(free, runtime=runtime)
    fixed = write_onnx(tmp_path / "1.onnx", [(1, 3, 6, 6)])
    with pytest.raises(UsageError, match=r"^batch \(=64\) must be 1, which is all that '.+' takes$"):
        bench(fixed)
    other = write_onnx(tmp_path / "o.onnx", [("n", 3, 5, 6)])
    with pytest.raises(
        UsageError, match=r"^against \(='.+o.onnx'\) must take images of 3x6x6 as '.+' does, not 3x5x6$"
    ):
        bench(fixed, other, batches=[1])


def test_a_network_of_the_users_own_is_timed_where_it_is_given(tmp_path: Path) -> None:
    def make(classes: int, channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))

    path, card = tmp_path / "own.safetensors", {"model": "own:make", "classes": 10, "channels": 3, "image_size": 6}
    save_model(compress_model(make(10, 3), {}), path, card=card)
    with pytest.raises(UsageError, match=r"holds the network 'own:make' of your own code, which no file brings: time"):
        bench(path)
    assert bench(path, model=make, **FEW)["files"][0]["latency_ms"]["2"] > 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nothing.onnx", {}, r"file \(='nothing.onnx'\) must be a file that exists$"),
        ("model.tflite", {}, r"file \(='model.tflite'\) must end in one of .onnx, .pt2, .safetensors$"),
        ("model.pte", {}, r".* must end in one of .onnx, .pt2, .safetensors: ExecuTorch's own runner times a .pte"),
        ("a.onnx", {"runtime": "tvm"}, r"runtime \(='tvm'\) must be one of torch, onnxruntime, openvino$"),
        (
            "a.onnx",
            {"runtime": "torch"},
            r"runtime \(='torch'\) must be onnxruntime or openvino for the file 'a.onnx'$",
        ),
        ("a.pt2", {"runtime": "openvino"}, r"runtime \(='openvino'\) must be torch for the file 'a.pt2'$"),
        ("a.onnx", {"threads": 0}, r"threads \(=0\) must be at least 1$"),
        ("a.onnx", {"batches": [0]}, r"batch \(=0\) must be at least 1$"),
    ],
)
def test_wrong_use_is_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        bench(name, **options)


def test_a_runtime_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"^runtime \(='openvino'\) must be installed: pip install openvino$"):
        bench("a.onnx", runtime="openvino")
