import pytest
import torch
from torch import nn

from layers import LayerForm, compress_model
from layers.integer.rounding import round_activation
from trainers.start import activations
from trainers.start.activations import scale_activations


def network(generator):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.LazyLinear(5)).eval()
    model(torch.zeros(1, 2, 8, 8))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=generator)
    return model


def test_a_scale_has_the_least_error_and_tensors_without_negative_values_are_unsigned(generator):
    model, images = network(generator), torch.randn(64, 2, 8, 8, generator=generator)
    compressed = compress_model(model, {"0": LayerForm(arithmetic="int8"), "2": LayerForm(arithmetic="int8")})
    scale_activations(compressed, images)
    with torch.no_grad():
        x = model[1](torch.nn.functional.conv2d(images, compressed[0].weight, model[0].bias))
    assert compressed[0].input_grid[1] == 128
    scale, zero = compressed[2].input_grid
    assert zero == 0
    assert torch.equal(compressed.activation_grids[0], compressed[2].input_grid)

    def error(s):
        return float((round_activation(x, torch.tensor([s, 0.0])) - x).square().sum())

    shares = torch.tensor(activations._SHARES) * float(x.max()) / 255
    assert error(float(scale)) == pytest.approx(min(error(float(s)) for s in shares), rel=1e-4)


def test_pieces_of_the_images_are_one_batch(generator, monkeypatch):
    model, images = network(generator), torch.randn(12, 2, 8, 8, generator=generator)
    forms = {name: LayerForm(bits=4, arithmetic="int8") for name in ("0", "2", "4")}
    whole, pieces = (compress_model(model, forms) for _ in range(2))
    scale_activations(whole, images)
    monkeypatch.setattr(activations, "_PIECE_PIXELS", 64 * 5)
    scale_activations(pieces, images)
    for name, value in whole.state_dict().items():
        assert torch.allclose(value, pieces.state_dict()[name]), name
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    scale_activations(whole, images)  # again, of a network that rounds already
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in before.items())


def test_a_network_of_zeros_and_one_in_float_are_let_be(generator):
    model, images = network(generator), torch.zeros(3, 2, 8, 8)
    floating = compress_model(model, {"0": LayerForm(bits=4)})
    scale_activations(floating, images)
    assert type(floating) is nn.Sequential
    compressed = compress_model(model, {"0": LayerForm(arithmetic="int8")})
    with torch.no_grad():
        compressed[0].bias.zero_()
    scale_activations(compressed, images)
    assert compressed(images).isfinite().all()
