import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from layers import OvertoneError, UsageError
from spaces import build_model, load_model
from spaces.portable import FORMATS, WriteOptions, check_format, shared_graphs, write
from spaces.portable.skeleton import make_skeleton
from tests.spaces.mixed import CARD, save_mixed


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed ResNet-8 with every kind of compression, on 8x8 images of one channel."""
    return save_mixed(tmp_path_factory.mktemp("packed") / "trial.safetensors")


def test_safetensors_is_the_packed_file_itself(packed: Path, tmp_path: Path) -> None:
    write(packed, tmp_path / "m", format="safetensors", card=CARD)
    assert (tmp_path / "m").read_bytes() == packed.read_bytes()


def test_pt2_runs_without_our_layers_on_any_batch(packed: Path, tmp_path: Path, images: Callable[..., Tensor]) -> None:
    write(packed, tmp_path / "model.pt2", format="pt2", card=CARD)
    module, model, x = torch.export.load(tmp_path / "model.pt2").module(), load_model(packed), images(7, 1, 8, 8)
    with torch.no_grad():
        for count in (1, 7):  # each against a batch of its own size: sums of another order may round otherwise
            torch.testing.assert_close(module(x[:count]), model(x[:count]), rtol=1e-4, atol=1e-4)


def test_onnx_runs_on_any_batch(packed: Path, tmp_path: Path, images: Callable[..., Tensor]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    write(packed, tmp_path / "model.onnx", format="onnx", card=CARD)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session, x = onnxruntime.InferenceSession(str(tmp_path / "model.onnx")), images(64, 1, 8, 8)
    with torch.no_grad():
        expected = load_model(packed)(x)
    batches = x.split([1] * 8 + [56])
    logits = torch.cat([torch.from_numpy(session.run(None, {"images": batch.numpy()})[0]) for batch in batches])
    # A runtime adds in another order, which turns the rounding of a 4-bit activation for about one image in 400.
    close = torch.isclose(logits, expected, rtol=1e-3, atol=1e-3).all(1)
    assert close.float().mean() >= 0.95


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_failures_of_the_exporters_are_one_sentence(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator\nand much more")

    monkeypatch.setattr(torch.export, "export", fail)
    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(OvertoneError, match=f"^cannot write the network 'resnet8' as {format}: no such operator$"):
        write(packed, tmp_path / "m", format=format, card=CARD)


def test_unknown_formats_are_refused(packed: Path, tmp_path: Path) -> None:
    for call in (check_format, lambda format: write(packed, tmp_path / "m", format=format, card=CARD)):
        with pytest.raises(UsageError, match=r"^format \(='tflite'\) must be one of safetensors, onnx, pt2, pte$"):
            call("tflite")
    for format in sorted({*FORMATS} - {"pte"}):
        check_format(format)


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        (
            "pt2",
            WriteOptions(inline=True),
            r"inline \(=True\) must be left out for the format 'pt2': it is for ",
        ),
        ("safetensors", WriteOptions(dense=True), r"dense \(=True\) must be left out for the format 'safetensors'"),
        ("pt2", WriteOptions(runtime="openvino"), r"runtime \(='openvino'\) must be left out for the format 'pt2'"),
        ("onnx", WriteOptions(inline=True, dense=True), r"inline \(=True\) must be left out with dense"),
        ("onnx", WriteOptions(runtime="tvm"), r"runtime \(='tvm'\) must be onnxruntime or openvino for the format"),
    ],
)
def test_options_that_a_format_does_not_have_are_refused(format: str, options: WriteOptions, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        check_format(format, options)


def test_onnx_tells_nothing_of_the_machine(packed: Path, tmp_path: Path) -> None:
    model = load_model(packed)
    skeleton = make_skeleton(build_model("resnet8", classes=10, channels=1), (1, 8, 8))
    folders = [Path.home(), Path(torch.__file__).parents[1], Path(__file__).parents[3], tmp_path]
    texts = ['File "', "site-packages", ".py", "layer1.0", *(str(path) for path in folders if path != Path("/"))]
    for content in (skeleton.file(model), skeleton.file(model, inline=True), skeleton.file(model, dense=True)):
        assert not [text for text in texts if text.encode() in content]


def test_missing_onnx_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(UsageError, match=r"needs the package onnxscript: pip install onnx onnxruntime onnxscript$"):
        check_format("onnx")


@pytest.mark.parametrize("size", [None, 0, [8, 0]])
def test_a_network_without_an_image_size_cannot_be_traced(packed: Path, tmp_path: Path, size: object) -> None:
    for format in ("onnx", "pt2"):
        with pytest.raises(OvertoneError, match=r"^image_size \(=.*\) of the packed model's card must be a size"):
            write(packed, tmp_path / "m", format=format, card=CARD | {"image_size": size})


def test_files_of_one_network_share_its_graph(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a block; none is kept after it."""
    traced: list[tuple[int, ...]] = []

    def make(network: object, image: tuple[int, ...], *, marked: bool) -> SimpleNamespace:
        traced.append(image)
        return SimpleNamespace(image=image, marks=marked)

    monkeypatch.setattr("spaces.portable.skeleton.make_skeleton", make)
    monkeypatch.setattr("spaces.portable.formats.tuned_file", lambda skeleton, *_: bytes(skeleton.image))

    def write_of(size: int) -> None:
        write(packed, tmp_path / "model.onnx", format="onnx", card={**CARD, "image_size": size})
        assert (tmp_path / "model.onnx").read_bytes() == bytes([1, size, size])

    with shared_graphs():
        for size in (8, 8, 9, 8):
            write_of(size)
    assert traced == [(1, 8, 8), (1, 9, 9)]
    write_of(8)
    write_of(8)
    assert len(traced) == 4
