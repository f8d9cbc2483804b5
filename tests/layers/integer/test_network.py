import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layers import LayerForm, OvertoneError, UsageError, compress_layer, compress_model, compressed_layers
from layers.integer.inputs import set_input_grid, unrounded_inputs
from layers.integer.network import IntegerNetwork, int8_layers, mark_calls, round_activations
from layers.integer.rounding import round_activation, round_filters
from layers.integer.sites import plan_rounding

INT8 = LayerForm(arithmetic="int8")


class Residual(nn.Module):
    """A stem, a block with a shortcut, a concatenation, pooling, and a classifier, with shared in-place modules."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.side = nn.Conv2d(8, 4, 1)
        self.relu = nn.ReLU(inplace=True)
        self.linear = nn.Linear(12, 5)

    def forward(self, x):
        x = self.relu(self.norm(self.stem(x)))
        y = self.conv2(self.relu(self.norm1(self.conv1(x))))
        y += x
        y = F.max_pool2d(self.relu(y), 2)
        y = torch.cat([y, self.side(y)], 1)
        return self.linear(F.adaptive_avg_pool2d(y, 1).flatten(1))


CALLS = [
    *("stem", "norm", "relu", "conv1", "norm1", "relu", "conv2", "add", "relu", "max_pool", "side", "cat", "average"),
    "linear",
]
ROUNDED = {"relu": [2, 5, 8], "conv2": [6], "max_pool": [9], "side": [10], "cat": [11], "average": [12]}


@pytest.fixture
def network(generator):
    model = Residual().eval()
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) / 3 - 0.15 if value.dim() > 1 else 0.5)
    return model


def planned(model, forms, images, scale=0.05):
    """Return a compressed model whose activations are all rounded to one scale, and its plan."""
    compressed = compress_model(model, forms)
    layers = int8_layers(compressed)
    with unrounded_inputs():
        plan = plan_rounding(compressed, layers, images[:1])
    round_activations(compressed, plan, torch.tensor([[scale, 128.0]] * plan.rows))
    for layer in layers.values():
        set_input_grid(layer, torch.tensor([scale, 128.0]))
    return compressed.eval(), plan


def all_forms(model, form=INT8):
    return {name: form for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}


def test_activations_are_rounded_behind_norm_and_relu_and_between_int8_layers(network, generator):
    images = torch.randn(2, 3, 8, 8, generator=generator)
    _, plan = planned(network, all_forms(network), images)
    assert plan.calls == len(CALLS)
    assert sorted(plan.grids) == sorted(number for numbers in ROUNDED.values() for number in numbers)
    assert plan.grids[9] == plan.grids[8]  # max-pooling stays on the grid of its input
    assert set(plan.inputs) == {"conv1", "conv2", "side", "linear"}
    assert plan.inputs["side"] == plan.grids[9]


def test_a_network_that_is_half_in_float_rounds_only_around_its_int8_layers(network, generator):
    images = torch.randn(2, 3, 8, 8, generator=generator)
    forms = {"conv2": INT8, "stem": LayerForm(bits=8), "norm": LayerForm(vector_bits=8)}
    _, plan = planned(network, forms, images)
    assert (plan.calls, sorted(plan.grids)) == (len(CALLS), [5, 6])


def test_outputs_are_those_of_rounded_layers(network, generator):
    images = torch.randn(4, 3, 8, 8, generator=generator)
    compressed, _ = planned(network, all_forms(network), images)
    grid = torch.tensor([0.05, 128.0])

    def conv(layer, x):
        return F.conv2d(x, round_filters(layer.weight), layer.bias, padding=layer.padding)

    def r(x):
        return round_activation(x, grid)

    with torch.no_grad():
        x = r(network.norm(conv(network.stem, r(images))).relu())
        y = r(conv(network.conv2, r(network.norm1(conv(network.conv1, x)).relu())))
        y = F.max_pool2d(r((y + x).relu()), 2)
        y = r(torch.cat([y, r(conv(network.side, y))], 1))
        expected = F.linear(r(y.mean((2, 3))), round_filters(network.linear.weight), network.linear.bias)
        assert (compressed(images) - expected).abs().max() <= 3 * 0.05
        assert (compressed(images) - expected).abs().median() < 0.01
    assert torch.allclose(compressed(images), compressed(images).detach(), atol=1e-5)


def test_training_rounds_too_and_every_weight_learns(network, generator):
    images = torch.randn(4, 3, 8, 8, generator=generator)
    form = LayerForm(basis="cosine", harmonics=(2, 2), arithmetic="int8")
    forms = {
        **all_forms(network),
        "conv1": form,
        "conv2": LayerForm(templates=4, transform="scalar", arithmetic="int8"),
    }
    compressed, _ = planned(network, forms, images)
    compressed.to(memory_format=torch.channels_last).train()
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            compressed(images.contiguous(memory_format=torch.channels_last)).float().square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in compressed.parameters())


def test_state_and_copies_keep_the_grids(network, generator):
    images = torch.randn(2, 3, 8, 8, generator=generator)
    compressed, plan = planned(network, all_forms(network), images)
    with torch.no_grad():
        expected = compressed(images)
        assert torch.equal(copy.deepcopy(compressed)(images), expected)
        other, _ = planned(network, all_forms(network), images, scale=1.0)
        assert not torch.equal(other(images), expected)
        other.load_state_dict(compressed.state_dict())
        assert torch.equal(other(images), expected)
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert isinstance(compressed, Residual)
    assert type(compressed).__name__ == "Residual"


def test_a_layer_without_a_scale_is_never_silently_float(network, generator):
    layer = compress_layer(network.conv2, INT8)
    x = torch.randn(1, 8, 6, 6, generator=generator)
    for mode in (True, False):
        with pytest.raises(UsageError, match=r"^a layer in int8 needs the scale of its input: calibrate"):
            layer.train(mode)(x)
    set_input_grid(layer, torch.tensor([0.02, 128.0]))
    expected = F.conv2d(
        round_activation(x, torch.tensor([0.02, 128.0])),
        round_filters(network.conv2.weight),
        network.conv2.bias,
        padding=1,
    )
    assert torch.allclose(layer(x), expected, atol=1e-5)
    assert torch.allclose(layer.weight, round_filters(network.conv2.weight))
    assert layer.executions == ("dense",)


def test_a_network_that_makes_other_calls_is_refused(network, generator):
    images = torch.randn(2, 3, 8, 8, generator=generator)

    class Deciding(Residual):
        def forward(self, x):
            y = super().forward(x)
            return F.relu(y) if x.max() > 100 else y

    network.__class__ = Deciding
    compressed, _ = planned(network, all_forms(network), images)
    compressed(images)
    with pytest.raises(
        OvertoneError, match=r"^the network must make the same calls for every batch to compute in int8"
    ):
        compressed(1000 * images)


def test_calls_have_the_same_numbers_in_every_form(network, generator):
    images = torch.randn(2, 3, 8, 8, generator=generator)

    def shapes(model):
        seen = {}
        marked = copy.deepcopy(model)
        mark_calls(marked, lambda x, number: seen.setdefault(number, tuple(x.shape)) and x)
        marked(images)
        return seen

    with unrounded_inputs():
        expected = shapes(network)
        assert len(expected) == len(CALLS)
        forms = [INT8, LayerForm(bits=4, activation_bits=4), LayerForm(vector_bits=6)]
        assert all(shapes(compress_model(network, all_forms(network, form))) == expected for form in forms)
    rounding = compress_model(network, {"norm": LayerForm(vector_bits=6), "norm1": LayerForm(vector_bits=6)})
    assert shapes(rounding) == shapes(network.train()) == expected
    assert not isinstance(rounding, IntegerNetwork)
    assert compressed_layers(rounding)
