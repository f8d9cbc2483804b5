import copy
import json
import math

import pytest
import torch

from layers import LayerForm, OvertoneError, compress_model
from spaces import build_model, load_model, read_card, save_model
from spaces.activations import check_activations, describe_activations
from trainers.start.activations import scale_activations

CARD = {"model": "resnet8", "classes": 10, "channels": 1}
FORMS = {
    "conv1": LayerForm(arithmetic="int8"),
    "layer1.0.conv1": LayerForm(basis="cosine", harmonics=(2, 2), bits=6, arithmetic="int8"),
    "layer1.0.conv2": LayerForm(templates=9, transform="scalar", bits=8, arithmetic="int8"),
    "layer1.0.bn2": LayerForm(vector_bits=8),
    "layer2.0.conv2": LayerForm(bits=4, activation_bits=6, arithmetic="int8"),
    "linear": LayerForm(vector_bits=6, arithmetic="int8"),
}


@pytest.fixture
def model(fill, images):
    model = compress_model(fill(build_model("resnet8", classes=10, channels=1)), FORMS)
    scale_activations(model, images(8, 1, 8, 8))
    return model.eval()


def test_a_file_gives_the_predictions_that_were_measured(model, images, tmp_path):
    save_model(model, tmp_path / "m.safetensors", card=CARD)
    loaded, x = load_model(tmp_path / "m.safetensors"), images(8, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    save_model(loaded, tmp_path / "again.safetensors", card=CARD)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()
    own = load_model(tmp_path / "m.safetensors", model=lambda **shape: build_model("resnet8", **shape))
    with torch.no_grad():
        assert torch.equal(own(x), model(x))


def test_the_grids_are_in_the_card_and_the_payload_is_that_of_float(model, tmp_path):
    save_model(model, tmp_path / "m.safetensors", card=CARD)
    card = read_card(tmp_path / "m.safetensors")["activations"]
    assert card["inputs"].keys() == {name for name, form in FORMS.items() if form.arithmetic == "int8"}
    header = (tmp_path / "m.safetensors").read_bytes()
    n = int.from_bytes(header[:8], "little")
    forms = {name: LayerForm(**{**vars(form), "arithmetic": "float"}) for name, form in FORMS.items()}
    floating = compress_model(build_model("resnet8", classes=10, channels=1), forms)
    save_model(floating, tmp_path / "float.safetensors", card=CARD)
    other = (tmp_path / "float.safetensors").read_bytes()
    assert len(header) - n == len(other) - int.from_bytes(other[:8], "little")
    assert "activations" not in read_card(tmp_path / "float.safetensors")


def test_a_network_without_scales_is_not_packed(fill, tmp_path):
    model = compress_model(fill(build_model("resnet8", classes=10, channels=1)), FORMS)
    with pytest.raises(OvertoneError, match=r"^cannot pack layer 'conv1' in int8: its activations have no scale yet$"):
        save_model(model, tmp_path / "m.safetensors", card=CARD)


CHANGES = [
    (lambda card: card.clear(), "activations must be an object with calls, grids and inputs"),
    (lambda card: card.update(calls=-1), r"calls \(=-1\) of activations"),
    (lambda card: card.update(calls=True), r"calls \(=True\) of activations"),
    (lambda card: card["grids"].append([1, 0.5]), r"grids of activations must be a list"),
    (lambda card: card["grids"].append([10**6, 0.5, 0]), r"calls of activations' grids"),
    (lambda card: card["grids"].append(card["grids"][-1]), r"calls of activations' grids"),
    (lambda card: card["grids"].insert(0, ["0", 0.5, 0]), r"calls of activations' grids"),
    (lambda card: card["inputs"].pop("conv1"), "must name each layer in int8, and no other"),
    (lambda card: card["inputs"].update(bn1=[0.5, 0]), "must name each layer in int8, and no other"),
    (lambda card: card["inputs"].update(conv1=[0.0, 0]), r"scale \(=0.0\)"),
    (lambda card: card["inputs"].update(conv1=[-1.0, 0]), r"scale \(=-1.0\)"),
    (lambda card: card["inputs"].update(conv1=[math.nan, 0]), r"scale \(=nan\)"),
    (lambda card: card["inputs"].update(conv1=[math.inf, 0]), r"scale \(=inf\)"),
    (lambda card: card["inputs"].update(conv1=["1", 0]), r"scale \(='1'\)"),
    (lambda card: card["inputs"].update(conv1=[0.5, 3]), r"zero point \(=3\) of activations must be 0 or 128"),
    (lambda card: card["inputs"].update(conv1=[0.5, False]), r"zero point \(=False\)"),
    (lambda card: card["inputs"].update(conv1=[]), r"scale \(=None\)"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_strange_cards_are_refused(model, change, message):
    card = json.loads(json.dumps(describe_activations(model)))
    layers = list(card["inputs"])
    check_activations(copy.deepcopy(card), layers)
    change(card)
    with pytest.raises(ValueError, match=message):
        check_activations(card, layers)


def test_int8_and_scales_come_together(model):
    check_activations(None, [])
    for card, layers in ((None, ["conv1"]), (describe_activations(model), [])):
        with pytest.raises(ValueError, match="must"):
            check_activations(card, layers)
