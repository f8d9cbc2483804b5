import copy

import pytest
import torch
from torch import nn

from layers import (
    CompressedConv2d,
    CompressedLinear,
    LayerForm,
    UsageError,
    compress_layer,
    compress_model,
    compressed_layers,
)


@pytest.fixture
def model(fill):
    inner = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    return fill(nn.Sequential(inner, nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))


def test_named_layers_are_replaced_in_a_copy(model, normal):
    before = copy.deepcopy(model.state_dict())
    forms = {"0.0": LayerForm(basis="cosine", harmonics=(2, 1)), "4": LayerForm(bits=4)}
    compressed = compress_model(model, forms)
    with torch.no_grad():
        for parameter in compressed.parameters():
            parameter.add_(1.0)
    assert type(model[0][0]) is nn.Conv2d
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: type(layer) for name, layer in compressed_layers(compressed).items()} == {
        "0.0": CompressedConv2d,
        "4": CompressedLinear,
    }
    assert {name: layer.form for name, layer in compressed_layers(compressed).items()} == forms
    assert compressed_layers(model) == {}


def test_the_compressed_network_computes_with_the_compressed_layers(model, normal):
    model.eval()
    form = LayerForm(basis="chebyshev", harmonics=(2, 2), bits=6)
    found = compress_model(model, {"1": form})
    by_hand = copy.deepcopy(model)
    by_hand[1] = compress_layer(model[1], form)
    x = normal(2, 3, 8, 8, dtype=torch.float32)
    assert torch.equal(found(x), by_hand(x))
    assert not torch.allclose(found(x), model(x))
    assert torch.equal(compress_model(model, {})(x), model(x))


@pytest.mark.parametrize("name", ["2.conv", "0.3", "", "O"])
def test_unknown_layer_is_refused(name, model):
    with pytest.raises(UsageError, match=rf"layer \(='{name}'\) must be one of the model's layers"):
        compress_model(model, {name: LayerForm(bits=4)})


@pytest.mark.parametrize(("name", "kind"), [("0.2", "ReLU"), ("0", "Sequential")])
def test_other_modules_are_refused(name, kind, model):
    with pytest.raises(UsageError, match=rf"layer \(={kind}\) must be a Conv2d, a Conv1d, a Linear or a norm"):
        compress_model(model, {name: LayerForm(bits=4)})
