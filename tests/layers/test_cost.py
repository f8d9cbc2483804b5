import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from layers import (
    Cost,
    LayerForm,
    LayerShape,
    UsageError,
    compress_layer,
    compress_model,
    layer_cost,
    network_cost,
    pack_state,
    remaining_cost,
)
from layers.blockfloat.format import AXES
from layers.conv import _with_one_row
from layers.templates import rebuild
from layers.templates.gather import template_gather


def packed_bytes(model: nn.Module) -> int:
    return sum(value.nbytes for value in pack_state(model).values())


def trained_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_costs_add_up_and_flops_are_twice_the_macs(rng):
    first, second = (Cost(*(rng.randint(0, 1000) for _ in range(3))) for _ in range(2))
    total = first + second
    assert dataclasses.astuple(total) == tuple(
        a + b for a, b in zip(dataclasses.astuple(first), dataclasses.astuple(second), strict=True)
    )
    assert total.flops == 2 * (first.macs + second.macs)


def executed_macs(layer: nn.Module, execution: str, x: Tensor) -> int:
    """What a convolution of one image multiplies, by PyTorch's counter but for the gather, which is an op of ours.

    Building filters does not count, nor does joining templates' own maps. A mixed tap has two neighbors an axis.
    """
    gathered = []

    def gather(maps: Tensor, operators: Tensor, source: Tensor, *place: Any) -> Tensor:
        y = template_gather(maps, operators, source, *place)
        each = operators[0].numel()
        if operators.dim() == 4:
            most = math.prod(min(k, 2) for k in layer.shape.kernel)
            assert int(operators.count_nonzero(3).max()) <= most
            each = operators[0, ..., 0].numel() * most
        gathered.append(y[0, 0].numel() * each * (len(source) - layer.form.templates))
        return y

    layer.execution = execution
    templates = layer.templates()
    with (
        torch.no_grad(),
        pytest.MonkeyPatch.context() as patch,
        FlopCounterMode(display=False) as counter,
    ):
        patch.setattr(rebuild, "template_gather", gather)
        patch.setattr(layer, "templates", lambda: templates)
        layer.filters()  # kept
        before = counter.get_total_flops()
        layer(x)
    return (counter.get_total_flops() - before) // 2 + sum(gathered)


@pytest.mark.parametrize("_", range(150))
def test_macs_are_those_of_the_cheapest_execution_that_there_is(_, random_conv, random_form, images, rng, normal):
    """`fused` has the same multiplications as `two_stage` or `sampled`, in a kernel of ours."""
    length = rng.random() < 0.2
    if length:
        groups = rng.choice([1, 1, 2])
        where = {"stride": rng.randint(1, 3), "padding": rng.randint(0, 3), "dilation": rng.randint(1, 2)}
        conv = nn.Conv1d(4 * groups, 6 * groups, rng.choice([1, 2, 3, 5]), groups=groups, **where).double()
        x = normal(1, 4 * groups, rng.randint(9, 20))
        form = random_form(_with_one_row(conv))
    else:
        modes = rng.choice(["zeros", "zeros", "reflect", "replicate", "circular"])
        conv = random_conv(padding_mode=modes)
        x = (
            images(conv, 1)
            if modes == "zeros"
            else normal(1, conv.in_channels, rng.randint(13, 17), rng.randint(13, 17))
        )
        form = random_form(conv)
    layer = compress_layer(conv, form).eval()
    source, target = (size if len(size) == 2 else (1, *size) for size in (tuple(x.shape[2:]), tuple(conv(x).shape[2:])))
    macs = layer_cost(LayerShape.from_module(conv, ((source, target),)), form).macs
    executions = [execution for execution in layer.executions if execution != "fused"]
    assert macs == min(executed_macs(layer, execution, x) for execution in executions)


@pytest.mark.parametrize("_", range(40))
def test_cost_of_a_convolution_is_that_of_the_built_and_packed_layer(_, random_conv, random_form, images):
    conv = random_conv(dtype=torch.float32)
    form = random_form(conv)
    cost, layer = layer_cost(LayerShape.from_module(conv), form), compress_layer(conv, form)
    assert cost.parameters == trained_parameters(layer)
    assert cost.size_bytes == packed_bytes(nn.Sequential(layer))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", ["same", (2, 1)])
def test_factored_macs_are_those_of_any_padding(mode, padding, fill, count_macs):
    conv = fill(nn.Conv2d(4, 64, 4, padding=padding, padding_mode=mode, bias=False))
    x, form = torch.zeros(1, 4, 11, 9), LayerForm(basis="cosine", harmonics=(2, 2))
    layer = compress_layer(conv, form)
    layer.execution = "factored"
    shape = LayerShape.from_module(conv, (((11, 9), tuple(conv(x).shape[2:])),))
    assert layer_cost(shape, form).macs == count_macs(layer, x) < count_macs(conv, x)


def test_calls_are_summed_and_a_layer_never_called_costs_no_macs():
    calls = (((8, 8), (4, 4)), ((6, 6), (3, 3)))
    shape = LayerShape(kind="conv2d", in_channels=3, out_channels=5, kernel=(3, 3), calls=calls)
    assert layer_cost(shape, LayerForm()).macs == (16 + 9) * 27 * 5
    assert layer_cost(dataclasses.replace(shape, calls=()), LayerForm()) == Cost(135, 540, 0)


@pytest.mark.parametrize("_", range(10))
def test_cost_of_a_linear_layer(_, rng, fill, normal, count_macs):
    linear = fill(nn.Linear(rng.randint(1, 30), rng.randint(1, 30), bias=rng.random() < 0.5))
    shared = {"exponent_axis": rng.choice(AXES), "activation_bits": 5, "activation_block": rng.randint(1, 40)}
    form = rng.choice([LayerForm(), LayerForm(bits=rng.randint(1, 16), exponent_block=rng.randint(1, 128), **shared)])
    rows = rng.randint(1, 5)
    cost = layer_cost(LayerShape.from_module(linear, (((1, rows), (1, rows)),)), form)
    layer = compress_layer(linear, form)
    assert cost.parameters == trained_parameters(layer)
    assert cost.size_bytes == packed_bytes(nn.Sequential(layer))
    assert cost.macs == count_macs(layer, normal(rows, linear.in_features, dtype=torch.float32))


@pytest.mark.parametrize("_", range(10))
def test_cost_of_a_network_is_that_of_the_built_and_packed_network(_, rng, fill, random_form):
    layers: list[nn.Module] = []
    channels, size, shapes, forms = rng.choice([1, 3, 4]), 12, {}, {}
    for _ in range(rng.randint(1, 4)):
        kernel, bias, width = rng.choice([1, 3, 5]), rng.random() < 0.5, rng.randint(1, 12)
        conv = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=bias)
        name = str(len(layers))
        shapes[name] = LayerShape.from_module(conv, (((size, size), (size, size)),))
        if rng.random() < 0.8:
            forms[name] = random_form(conv)
        layers += [conv, nn.BatchNorm2d(width), nn.PReLU(width)]
        channels = width
    model = fill(nn.Sequential(*layers))
    assert isinstance(model, nn.Sequential)
    model.register_buffer("mean", torch.zeros(3, dtype=torch.float64))
    model.register_buffer("mask", torch.ones(3, 5, dtype=torch.bool))
    cost = network_cost(shapes, forms, remaining_cost(model, shapes))
    compressed = compress_model(model, forms)
    assert cost.parameters == trained_parameters(compressed)
    assert cost.size_bytes == packed_bytes(compressed)
    assert cost.macs == sum(layer_cost(shape, forms.get(name, LayerForm())).macs for name, shape in shapes.items())


def test_what_remains_leaves_out_named_layers_and_batch_counters():
    model = nn.ModuleDict({"a": nn.Conv2d(2, 3, 3), "ab": nn.Conv2d(2, 3, 1), "norm": nn.BatchNorm2d(3)})
    rest = remaining_cost(model, ["a"])
    assert rest == Cost(parameters=9 + 6, size_bytes=4 * (9 + 6 + 6), macs=0)


def test_ratio_of_template_macs_is_that_of_the_paper(rng):
    """Miles & Mikolajczyk eqs. 5-7: M/N + G/C - G M/(C N) of the dense layer."""
    for _ in range(100):
        groups = rng.choice([1, 2, 4, 8])
        channels, filters = groups * rng.randint(1, 32), rng.randint(1, 256)
        templates = rng.randint(1, filters)
        calls = (((9, 9), (7, 7)),)
        shape = LayerShape(kind="conv2d", in_channels=channels, out_channels=filters, kernel=(3, 3), calls=calls)
        dense = layer_cost(shape, LayerForm())
        cost = layer_cost(shape, LayerForm(templates=templates, groups=groups, transform="scalar"))
        ratio = templates / filters + groups / channels - groups * templates / (channels * filters)
        assert cost.macs / dense.macs == pytest.approx(min(1.0, ratio), rel=1e-12)
        assert cost.parameters / dense.parameters == pytest.approx(ratio, rel=1e-12)


def test_forms_that_do_not_fit_are_refused_here_too():
    shape = LayerShape(kind="conv2d", in_channels=3, out_channels=4, kernel=(3, 3))
    with pytest.raises(UsageError, match=r"harmonics \(=\(4, 3\)\) must be between 1 and"):
        layer_cost(shape, LayerForm(basis="cosine", harmonics=(4, 3)))
