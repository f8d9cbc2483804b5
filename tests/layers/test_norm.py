import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layers import CompressedNorm, LayerForm, LayerShape, UsageError, compress_layer, compress_model
from layers.blockfloat import quantize
from layers.blockfloat.format import BlockFormat
from layers.cost import layer_cost
from layers.form import is_norm
from layers.pack import pack_state, unpack_state

FORM = LayerForm(vector_bits=4)


def rounded(x, bits=4):
    return quantize(x.detach(), BlockFormat(bits=bits))


def trained(norm, generator):
    with torch.no_grad():
        for value in [*norm.parameters(), *norm.buffers()]:
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) * 3 + 0.01)
    return norm


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_evaluates_with_rounded_vectors(generator, affine):
    norm = trained(nn.BatchNorm2d(7, affine=affine), generator).eval()
    layer, x = compress_layer(norm, FORM), torch.randn(3, 7, 5, 5, generator=generator)
    scale, shift = (rounded(norm.weight), rounded(norm.bias)) if affine else (None, None)
    expected = F.batch_norm(x, rounded(norm.running_mean), rounded(norm.running_var), scale, shift, eps=norm.eps)
    assert torch.equal(layer(x), expected)
    assert not torch.equal(layer(x), norm(x))
    assert isinstance(layer, nn.BatchNorm2d | CompressedNorm)
    assert torch.equal(layer.plain()(x), expected)
    assert type(layer.plain()) is nn.BatchNorm2d


def test_batch_norm_trains_as_one_with_rounded_scale_and_shift(generator):
    norm = trained(nn.BatchNorm2d(7), generator)
    layer, x = compress_layer(norm, FORM), torch.randn(3, 7, 5, 5, generator=generator)
    weight, bias = (rounded(value).requires_grad_() for value in (norm.weight, norm.bias))
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    expected = F.batch_norm(x, mean, variance, weight, bias, training=True)
    target = torch.randn(expected.shape, generator=generator)
    (expected * target).sum().backward()
    (layer(x) * target).sum().backward()
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer.weight.grad, weight.grad)
    assert torch.equal(layer.bias.grad, bias.grad)


def test_statistics_are_gathered_unrounded(generator):
    norm = trained(nn.BatchNorm2d(7), generator)
    layer, x = compress_layer(norm, FORM), torch.randn(3, 7, 5, 5, generator=generator)
    norm(x)
    layer(x)
    assert torch.equal(layer.running_mean, norm.running_mean)
    assert torch.equal(layer.running_var, norm.running_var)
    assert layer.num_batches_tracked == norm.num_batches_tracked


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.GroupNorm(3, 6), nn.BatchNorm1d(6)])
def test_other_norms(generator, norm):
    norm = trained(norm, generator).eval()
    layer, x = compress_layer(norm, FORM), torch.randn(5, 6, generator=generator)
    twin = copy.deepcopy(norm)
    with torch.no_grad():
        for value in [*twin.parameters(), *twin.buffers()]:
            if value.is_floating_point():
                value.copy_(rounded(value))
    assert torch.equal(layer(x), twin(x))


def test_the_stored_vectors_stay_as_they_are(generator):
    norm = trained(nn.BatchNorm2d(7), generator)
    layer = compress_layer(norm, FORM)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.eval()(torch.randn(2, 7, 3, 3, generator=generator))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert layer.state_dict().keys() == norm.state_dict().keys()
    assert [type(value) for value in layer.parameters()] == [nn.Parameter, nn.Parameter]
    with pytest.raises(ValueError, match="expected 4D input"):
        layer(torch.zeros(2, 7))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_packed_bytes_are_those_of_the_cost(generator):
    model = nn.Sequential(nn.Conv2d(3, 7, 3), trained(nn.BatchNorm2d(7), generator), nn.Flatten(), nn.Linear(7, 5))
    forms = {"0": LayerForm(vector_bits=6), "1": LayerForm(vector_bits=5), "3": LayerForm(bits=8, vector_bits=4)}
    compressed = compress_model(model, forms).eval()
    packed = pack_state(compressed)
    shapes = {name: LayerShape.from_module(model.get_submodule(name)) for name in forms}
    assert sum(value.nbytes for value in packed.values()) == sum(
        layer_cost(shapes[name], form).size_bytes for name, form in forms.items()
    )
    assert layer_cost(shapes["1"], forms["1"]).parameters == 14
    other = compress_model(nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.Flatten(), nn.Linear(7, 5)), forms)
    unpack_state(other.eval(), packed)
    x = torch.randn(2, 3, 3, 3, generator=generator)
    assert torch.equal(other(x), compressed(x))
    assert torch.equal(other[0].bias, rounded(model[0].bias, 6))
    assert torch.equal(other[1].running_var, rounded(model[1].running_var, 5))


def test_biases_are_added_rounded(generator):
    conv, x = nn.Conv2d(3, 7, 3), torch.randn(2, 3, 5, 5, generator=generator)
    layer = compress_layer(conv, FORM).eval()
    assert torch.equal(layer(x), F.conv2d(x, conv.weight, rounded(conv.bias)))
    linear = nn.Linear(5, 7)
    assert torch.equal(compress_layer(linear, FORM)(x), F.linear(x, linear.weight, rounded(linear.bias)))
    layer(x).sum().backward()
    assert torch.equal(layer.bias.grad, torch.full((7,), 18.0))


@pytest.mark.parametrize(
    "form", [LayerForm(bits=4), LayerForm(basis="cosine", harmonics=(1, 1)), LayerForm(templates=2, transform="scalar")]
)
def test_norms_take_vector_bits_alone(form):
    with pytest.raises(UsageError, match=r"^a norm takes vector_bits alone, neither bits nor harmonics"):
        compress_layer(nn.BatchNorm2d(4), form)


def test_what_is_no_norm_of_vectors():
    for module in (nn.ReLU(), nn.LayerNorm([3, 4]), nn.BatchNorm2d(3, affine=False, track_running_stats=False)):
        assert not is_norm(module)
        with pytest.raises(UsageError, match=r"must be a Conv2d, a Conv1d, a Linear or a norm$"):
            compress_layer(module, FORM)
    with pytest.raises(UsageError, match=r"bits \(=0\) must be a whole number from 1 to 16$"):
        LayerForm(vector_bits=0)
