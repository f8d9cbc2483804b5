"""Exported files read in a process of its own."""

import sys
from pathlib import Path

import pytest
import torch

from layers import OvertoneError, UsageError, compress_model
from search.export import reader
from search.export.reader import check_reader, logits_in_subprocess
from search.study.plan import StudyPlan
from spaces import NetworkConfig, build_model, load_model, save_model
from trainers.data import load_data
from trainers.evaluation import predict_logits
from trainers.spec import TrialSpec
from trainers.trial import image_card

FACTORY = "own_network:make"


@pytest.fixture
def spec(plan: StudyPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrialSpec:
    """A trial of a network of the user's own, in a folder that only this process was told of, beside no Ray."""
    (tmp_path / "own_network.py").write_text(
        "from spaces import build_model\n\n\ndef make(**shape):\n    return build_model('resnet8', **shape)\n"
    )
    for name in ("ray", "optuna"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('must not be needed')\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    fields = {**plan.spec(NetworkConfig(), weights_sha256="w", data_fingerprint="d").to_json(), "model": FACTORY}
    return TrialSpec.from_json(fields)


def test_a_file_is_read_without_ray_and_optuna_where_the_caller_looks_for_modules(
    spec: TrialSpec, tmp_path: Path, generator: torch.Generator
) -> None:
    data, path = load_data(spec.data), tmp_path / "model.safetensors"
    network = compress_model(build_model("resnet8", classes=10, channels=1), {}).eval()
    with torch.no_grad():
        network.linear.weight.normal_(generator=generator)
        images = data.normalize(data.val.take(torch.arange(len(data.val))))
        network.linear.bias -= network(images).mean(0)  # so that no class has all images
    save_model(network, path, card={"model": FACTORY, **image_card(data)})
    splits = (data.val, data.test)
    expected = [predict_logits(network, split, data.normalize, device="cpu") for split in splits]
    assert len(expected[0].argmax(1).unique()) > 1
    torch.testing.assert_close(logits_in_subprocess(path, FACTORY, data), tuple(expected))
    assert not list(tmp_path.glob("*.npy"))
    assert load_model(path, model=reader.factory_of(FACTORY)) is not None


@pytest.mark.parametrize("format", ["safetensors", "onnx", "pt2"])
def test_a_file_that_cannot_be_read_is_one_sentence(spec: TrialSpec, tmp_path: Path, format: str) -> None:
    (tmp_path / f"model.{format}").write_bytes(b"not a model")
    with pytest.raises(OvertoneError, match=f"^cannot read the exported {format} in a process of its own: .+$"):
        logits_in_subprocess(tmp_path / f"model.{format}", FACTORY, load_data(spec.data))
    assert not list(tmp_path.glob("*.npy"))


def test_a_reader_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader.importlib.util, "find_spec", lambda name: None)
    check_reader("pt2")
    with pytest.raises(UsageError, match=r"verified by onnxruntime: pip install onnx onnxruntime onnxscript$"):
        check_reader("onnx")
