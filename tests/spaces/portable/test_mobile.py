"""Networks in int8 as files of ExecuTorch, where there is one."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from layers import LayerForm, OvertoneError, UsageError, compress_model
from spaces import build_model, save_model
from spaces.portable import check_format, write
from spaces.portable.mobile import MobileNetwork, check_mobile, fake_quantized, write_mobile
from trainers.start.activations import scale_activations

CARD = {"model": "resnet8", "classes": 10, "channels": 1, "image_size": 8}
NAMES = ("conv1", *(f"layer{s}.0.conv{i}" for s in (1, 2, 3) for i in (1, 2)), "linear")
FORMS = {name: LayerForm(arithmetic="int8", bits=6, exponent_block=4) for name in NAMES}
FORMS |= {
    "layer1.0.conv2": LayerForm(arithmetic="int8", basis="cosine", harmonics=(2, 2)),
    "layer1.0.bn2": LayerForm(vector_bits=9),
    "layer3.0.conv2": LayerForm(arithmetic="int8", templates=20, transform="scalar"),
}


@pytest.fixture
def dense(fill: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return fill(build_model("resnet8", classes=10, channels=1))


@pytest.fixture
def model(dense: nn.Module, images: Callable[..., Tensor]) -> nn.Module:
    compressed = compress_model(dense, FORMS)
    scale_activations(compressed, images(32, 1, 8, 8))
    return compressed.eval()


def test_the_network_for_the_runtime_rounds_where_the_packed_one_does(
    model: nn.Module, dense: nn.Module, images: Callable[..., Tensor]
) -> None:
    given = copy.deepcopy(dense.state_dict())
    network, x = fake_quantized(model, dense), images(64, 1, 8, 8)
    with torch.no_grad():
        ours, theirs, uncompressed = network(x), model(x), dense(x)
    assert (ours - theirs).abs().mean() < 0.05 * theirs.std()
    assert (uncompressed - theirs).abs().mean() > 2 * (ours - theirs).abs().mean()
    assert all(torch.equal(value, given[name]) for name, value in dense.state_dict().items())


def test_networks_in_float_are_refused(dense: nn.Module, tmp_path: Path) -> None:
    model = compress_model(dense, {"conv1": LayerForm(bits=8)})
    with pytest.raises(OvertoneError, match=r"^a pte file holds layers in int8 alone: .* with arithmetic: int8$"):
        write_mobile(model, dense, (1, 8, 8), tmp_path / "m.pte")


def test_an_environment_without_executorch_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OVERTONE_MOBILE_PYTHON", str(tmp_path / "python"))
    with pytest.raises(UsageError, match=r"^format 'pte' needs the package executorch: .* and PyTorch$"):
        check_format("pte")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_file_gives_the_packed_models_classes(
    model: nn.Module, images: Callable[..., Tensor], tmp_path: Path
) -> None:
    try:
        check_mobile()
    except UsageError as error:
        pytest.skip(str(error))
    save_model(model, tmp_path / "m.safetensors", card=CARD)
    write(tmp_path / "m.safetensors", tmp_path / "m.pte", format="pte", card=CARD)
    x = images(400, 1, 8, 8)
    with torch.no_grad():
        expected = model(x)
    with MobileNetwork(tmp_path / "m.pte") as network:
        logits = torch.cat([network(part) for part in x.split(150)])
    assert (logits.argmax(1) != expected.argmax(1)).sum() <= 4
    assert (tmp_path / "m.pte").stat().st_size < 78_000 * 1.5
    assert bytes(tmp_path) not in (tmp_path / "m.pte").read_bytes()
