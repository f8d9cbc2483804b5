import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers import (
    ChebConv2d,
    CompressedConv1d,
    CompressedConv2d,
    CompressedLinear,
    CosConv2d,
    LayerForm,
    LayerShape,
    TemplateConv2d,
    UsageError,
    compress_layer,
)
from layers.blockfloat import BlockFormat, quantize
from layers.series.sampling import basis_matrix
from tests.layers.oracle import oracle_filters, rounded_inputs

SERIES = LayerForm(basis="chebyshev", harmonics=(2, 3))
TEMPLATES = LayerForm(templates=3, groups=2, transform="scalar")
SPENT = LayerForm(basis="cosine", harmonics=(2, 2), allocation="filter")
IN_BLOCKS = LayerForm(bits=4, activation_bits=5, activation_block=3)
ALL = LayerForm(basis="cosine", harmonics=(2, 2), templates=3, groups=2, transform="scalar", bits=5, exponent_block=16)


@pytest.fixture
def conv(fill):
    return fill(nn.Conv2d(4, 8, 3, padding=1))


@pytest.fixture
def x(normal):
    return normal(2, 4, 9, 8, dtype=torch.float32)


@pytest.mark.parametrize("_", range(40))
def test_layer_is_the_dense_convolution_with_the_filters_that_its_tensors_stand_for(
    _, random_conv, random_form, images
):
    conv = random_conv()
    form, x = random_form(conv), images(conv)
    layer = CompressedConv2d(conv, form)
    expected_filters = oracle_filters(layer)
    assert torch.allclose(layer.filters(), expected_filters, atol=1e-10)
    rounded = rounded_inputs(x, form)
    expected = F.conv2d(rounded, expected_filters, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    found = layer(x)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("_", range(20))
def test_start_is_the_least_squares_answer(_, random_conv, random_form):
    conv = random_conv()
    form = dataclasses.replace(random_form(conv), allocation=None)
    layer = CompressedConv2d(conv, form)
    kept = torch.ones(conv.out_channels, dtype=torch.bool) if form.templates is None else layer.template_mask
    templates = conv.weight.detach()[kept].unflatten(1, (form.groups, -1)).transpose(0, 1).flatten(0, 1)
    if form.basis is not None:
        sizes = zip(conv.kernel_size, form.harmonics, strict=True)
        system = torch.kron(*(basis_matrix(form.basis, k, n) for k, n in sizes))
        columns = templates.flatten(2).flatten(0, 1).mT
        templates = torch.linalg.lstsq(system, columns).solution.mT.reshape(layer.coefficients.shape)
    assert torch.allclose(layer.coefficients, templates, atol=1e-9)
    if form.transform == "scalar":
        taps = oracle_filters(layer)[kept].unflatten(1, (form.groups, -1))
        base = taps[layer.assignment()]
        pruned = conv.weight.detach()[~kept].unflatten(1, (form.groups, -1))
        energy = (base * base).sum(2)
        relative = energy / energy.amax((2, 3), keepdim=True)
        there, gains = relative > 1e-11, (pruned * base).sum(2) / energy
        assert torch.allclose(layer.gains[there], gains[there], rtol=1e-6, atol=1e-9)
        assert not layer.gains[~(relative > 1e-20)].any()


@pytest.mark.parametrize("_", range(5))
def test_kept_filters_stay_exactly_and_the_rest_is_nearer_than_zero(_, random_conv, rng):
    conv = random_conv(in_channels=4, out_channels=9, groups=1, dtype=torch.float32)
    form = LayerForm(templates=rng.randint(1, 8), groups=rng.choice([1, 2, 4]), transform="scalar")
    layer = CompressedConv2d(conv, form)
    assert int(layer.template_mask.sum()) == form.templates
    assert torch.equal(layer.filters()[layer.template_mask], conv.weight[layer.template_mask])
    assert (layer.filters() - conv.weight).square().sum() < conv.weight[~layer.template_mask].square().sum()


@pytest.mark.parametrize(("kind", "family"), [(CosConv2d, "cosine"), (ChebConv2d, "chebyshev")])
def test_series_constructors_take_what_conv2d_takes(kind, family, fill, normal):
    options: dict[str, Any] = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2, "bias": False}
    layer = fill(kind(4, 6, (5, 3), (3, 2), padding_mode="replicate", **options))
    assert layer.form == LayerForm(basis=family, harmonics=(3, 2))
    assert [tuple(parameter.shape) for parameter in layer.parameters()] == [(6, 2, 3, 2)]
    dense = nn.Conv2d(4, 6, (5, 3), padding_mode="replicate", **options)
    with torch.no_grad():
        dense.weight.copy_(oracle_filters(layer))
    x = normal(2, 4, 9, 9, dtype=torch.float32)
    assert torch.allclose(layer(x), dense(x), atol=1e-4)
    square = kind(4, 6, 3, 2)
    assert square.form.harmonics == (2, 2)
    assert square.bias is not None
    with pytest.raises(UsageError, match=r"harmonics \(=\(4, 4\)\) must be between 1 and"):
        kind(4, 6, 3, 4)


def test_template_constructor(fill, normal):
    layer = fill(TemplateConv2d(4, 6, 3, 2, template_groups=2, stride=2, padding="valid", dilation=2, bias=False))
    assert layer.form == LayerForm(templates=2, groups=2, transform="scalar")
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "coefficients": (4, 2, 3, 3),
        "gains": (4, 2, 3, 3),
    }
    x = normal(2, 4, 9, 9, dtype=torch.float32)
    expected = F.conv2d(x, oracle_filters(layer).float(), stride=2, dilation=2)
    for layer.execution in ("dense", "two_stage"):
        assert torch.allclose(layer(x), expected, atol=1e-4)
    with pytest.raises(UsageError, match=r"templates \(=7\) must be between 1 and"):
        TemplateConv2d(4, 6, 3, 7)


@pytest.mark.parametrize("form", [SERIES, SPENT, TEMPLATES, LayerForm(**{**vars(ALL), "bits": None})])
def test_gradients_of_a_whole_layer(form, conv, normal):
    layer = CompressedConv2d(conv.double(), form)
    names, values = zip(*layer.named_parameters(), strict=True)
    x = normal(1, 4, 4, 5).requires_grad_()

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *values))


def test_gradient_of_quantised_layer_is_that_of_the_dense_one_at_the_rounded_values(conv, x):
    form = LayerForm(bits=3, exponent_block=16, exponent_axis="filter", activation_bits=4, activation_block=3)
    layer, dense = CompressedConv2d(conv, form), copy.deepcopy(conv)
    with torch.no_grad():
        dense.weight.copy_(quantize(conv.weight, form.weight_format))
    rounded = quantize(x, form.activation_format).requires_grad_()
    x.requires_grad_()
    layer(x).square().sum().backward()
    dense(rounded).square().sum().backward()
    assert not torch.equal(dense.weight, conv.weight)
    assert torch.equal(layer.coefficients.grad, dense.weight.grad)
    assert torch.equal(x.grad, rounded.grad)
    assert torch.equal(layer.bias.grad, dense.bias.grad)


@pytest.mark.parametrize("form", [LayerForm(), SERIES, SPENT, TEMPLATES, ALL])
def test_state_dict_carries_the_whole_layer(form, conv, fill, x):
    layer, other = CompressedConv2d(conv, form), CompressedConv2d(fill(copy.deepcopy(conv)), form)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    expected = {"coefficients", "bias"} | ({"gains", "template_mask"} if form.templates else set())
    expected |= {"frequency_support"} if form.allocation else set()
    assert set(state) == expected
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(state)
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("form", [SERIES, SPENT, TEMPLATES, ALL])
def test_copies_are_independent(form, conv, x):
    layer = CompressedConv2d(conv, form)
    before, twin = layer(x), copy.deepcopy(layer)
    assert torch.equal(twin(x), before)
    with torch.no_grad():
        for value in twin.parameters():
            value.mul_(2.0)
    assert torch.equal(layer(x), before)
    assert not torch.equal(twin(x), before)
    conv.weight.data.zero_()
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("form", [LayerForm(), SERIES, TEMPLATES, ALL])
def test_channels_last_layer_and_input(form, conv, x):
    layer = CompressedConv2d(conv, form)
    expected = layer(x)
    layer = layer.to(memory_format=torch.channels_last)
    found = layer(x.contiguous(memory_format=torch.channels_last))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(found, expected, atol=1e-4)
    if form.basis is not None and form.templates is None:
        layer.execution = "factored"
        assert torch.allclose(layer(x), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("form", "execution"),
    [
        (SERIES, "dense"),
        (SERIES, "factored"),
        (SPENT, "dense"),
        (SPENT, "factored"),
        (TEMPLATES, "dense"),
        (TEMPLATES, "two_stage"),
        (ALL, "dense"),
    ],
)
def test_autocast_to_bfloat16(form, execution, conv, x):
    layer = CompressedConv2d(conv, form)
    layer.execution = execution
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x)
    found.float().square().sum().backward()
    assert (found.float() - expected).abs().max() < 0.05 * expected.abs().max()
    assert all(weight.grad.dtype == torch.float32 for weight in layer.parameters())
    assert found.dtype == torch.bfloat16


def test_layers_of_other_precisions_keep_theirs(random_conv, random_form, images):
    for dtype in (torch.float64, torch.bfloat16):
        conv = random_conv(dtype=torch.float32).to(dtype)
        layer = CompressedConv2d(conv, random_form(conv))
        assert layer(images(conv)).dtype == dtype


@pytest.mark.parametrize(
    ("form", "execution"),
    [(LayerForm(**{**vars(ALL), "bits": None}), "dense"), (SERIES, "factored"), (SPENT, "dense"), (ALL, "dense")],
)
def test_traces_into_one_graph(form, execution, conv, x):
    check_compiled(form, execution, conv, x, "aot_eager")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("form", "execution"),
    [(SERIES, "factored"), (TEMPLATES, "dense"), (TEMPLATES, "two_stage"), (ALL, "dense")],
)
def test_compiles_into_one_graph(form, execution, conv, x):
    check_compiled(form, execution, conv, x, "inductor")


def check_compiled(form: LayerForm, execution: Any, conv: nn.Conv2d, x: Tensor, backend: str) -> None:
    torch._dynamo.reset()
    layer = CompressedConv2d(conv, form)
    layer.execution = execution
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend=backend)
    for module in (layer, compiled):
        module(x).square().sum().backward()
    assert torch.allclose(compiled(x), layer(x), atol=1e-4)
    gradients = zip(layer.parameters(), compiled.parameters(), strict=True)
    assert all(torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-3) for one, other in gradients)


@pytest.mark.parametrize("form", [LayerForm(basis="cosine", harmonics=(1, 2)), TEMPLATES, IN_BLOCKS])
@pytest.mark.parametrize(("padding", "mode"), [(2, "zeros"), (1, "reflect"), (2, "circular"), ("same", "replicate")])
def test_1d_convolutions(form, padding, mode, fill, normal):
    conv = fill(nn.Conv1d(4, 8, 5, padding=padding, padding_mode=mode, dilation=2, bias=mode != "zeros").double())
    flat = fill(nn.Conv2d(4, 8, (1, 5), bias=conv.bias is not None).double())
    flat.weight.data.copy_(conv.weight.unsqueeze(2))
    layer = compress_layer(conv, form)
    assert isinstance(layer, CompressedConv1d)
    assert layer.shape == LayerShape.from_module(conv)
    assert torch.allclose(layer.filters(), CompressedConv2d(flat, form).filters(), atol=1e-12)
    x = normal(3, 4, 17)
    rounded = rounded_inputs(x, form)
    with torch.no_grad():
        conv.weight.copy_(layer.filters()[:, :, 0])
    for execution in layer.executions:
        layer.execution = execution
        assert torch.allclose(layer(x), conv(rounded), atol=1e-9)


def test_linear_layer_rounds_weights_and_inputs(fill, rng, normal):
    linear = fill(nn.Linear(rng.randint(1, 20), 7, bias=rng.random() < 0.5))
    x = normal(3, 4, 2, linear.in_features, dtype=torch.float32)
    assert torch.equal(CompressedLinear(linear, LayerForm())(x), linear(x))
    form = LayerForm(bits=3, exponent_block=5, exponent_axis="filter")
    form = dataclasses.replace(form, activation_bits=5, activation_block=rng.choice([1, 3, 64]))
    layer = CompressedLinear(linear, form)
    weight = torch.stack([quantize(row, BlockFormat(bits=3, block=5)) for row in linear.weight])
    assert torch.equal(layer.filters(), weight)
    rounded = rounded_inputs(x.movedim(-1, 1), form).movedim(1, -1)
    assert torch.equal(layer(x), F.linear(rounded, weight, linear.bias))
    assert torch.equal(layer(x[0, 0, 0]), F.linear(rounded[0, 0, 0], weight, linear.bias))
    assert torch.equal(layer.to(memory_format=torch.channels_last).filters(), weight)


def test_layers_say_what_they_are(conv):
    text = repr(CompressedConv2d(conv, ALL))
    assert "4, 8, kernel=(3, 3), stride=(1, 1)" in text
    assert "harmonics=(2, 2)" in text
    assert "templates=3, groups=2" in text
