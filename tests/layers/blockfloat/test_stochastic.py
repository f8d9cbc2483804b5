import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layers import LayerForm, compress_layer
from layers.blockfloat import BlockFormat, quantize
from layers.blockfloat.format import AXES

DRAWS = 4096


@pytest.fixture(autouse=True)
def _seeded(rng):
    with torch.random.fork_rng():
        torch.manual_seed(rng.randrange(2**32))
        yield


@pytest.mark.parametrize("block", [1, 5])
@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_mean_of_many_draws_is_the_value_itself(bits, block, normal):
    form = BlockFormat(bits=bits, block=block, axis="filter")
    x = normal(40, dtype=torch.float32)
    x[3], x[8] = 1 - 2.0**-20, -(2 - 2.0**-20)  # between the largest mantissa and the next power of two
    largest = x.view(-1, block).abs().amax(1).repeat_interleave(block)
    steps = 2.0 ** (torch.frexp(largest).exponent + (block > 1) - bits)  # twice as large as most often, in blocks
    errors = quantize(x.expand(DRAWS, -1).contiguous(), form, "stochastic").double() - x
    assert (errors.abs() < steps).all()
    assert (errors.mean(0).abs() <= 6 * steps / 2 / math.sqrt(DRAWS)).all()
    assert ((errors > 0).any(0) & (errors < 0).any(0)).sum() > 30 * (bits < 16)


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("axis", AXES)
def test_drawn_values_are_held_exactly_and_stay(bits, axis, rng, normal):
    for block in (1, 3, 16):
        form = BlockFormat(bits=bits, block=block, axis=axis)
        x = normal(6, 11, 3, dtype=torch.float32) * 2.0 ** torch.arange(-2, 1)
        drawn = quantize(x, form, "stochastic")
        assert torch.equal(quantize(drawn, form), drawn)
        assert torch.equal(quantize(drawn, form, "stochastic"), drawn)
        exact = quantize(x, form)
        assert torch.equal(quantize(exact, form, "stochastic"), exact)


@pytest.mark.parametrize("bits", [4, 11])
def test_single_values_go_to_either_neighbour_of_the_ordinary_grid(bits, normal):
    x = normal(500, dtype=torch.float32)
    step = 2.0 ** (torch.frexp(x).exponent - bits)
    error = quantize(x, BlockFormat(bits=bits), "stochastic") - x
    assert (error.abs() < step).all()
    assert 150 < (error > 0).sum() < 350


@pytest.mark.parametrize("block", [1, 4])
def test_edges_are_those_of_nearest_rounding(block):
    form = BlockFormat(bits=8, block=block)
    edges = {2.0**-64 * (1 - 2.0**-24): 0.0, -1e-45: 0.0, -0.0: 0.0, 2.0**-64: 2.0**-64, 255 * 2.0**56: 255 * 2.0**56}
    for value, expected in edges.items():
        found = quantize(torch.full((4,), value), form, "stochastic")
        assert found.tolist() == [expected] * 4
        assert not found.signbit().any()
    for bad in (math.nan, math.inf, -math.inf, 2.0**64, -255.5 * 2.0**56, 255.1 * 2.0**56):
        assert quantize(torch.full((4,), bad), form, "stochastic").isnan().all()
    x = torch.ones(8)
    x[1] = math.inf
    assert quantize(x, form, "stochastic").isnan().sum() == block


def test_draws_follow_the_global_seed(normal):
    x, form = normal(200, dtype=torch.float32), BlockFormat(bits=3, block=8)
    state = torch.get_rng_state()
    first = quantize(x, form, "stochastic")
    assert not torch.equal(quantize(x, form, "stochastic"), first)
    torch.set_rng_state(state)
    assert torch.equal(quantize(x, form, "stochastic"), first)
    before = torch.get_rng_state()
    quantize(x, form)
    assert torch.equal(torch.get_rng_state(), before)


def test_layers_draw_in_training_and_never_in_evaluation(fill, normal):
    form = LayerForm(bits=3, exponent_block=4, activation_bits=3, activation_block=2)
    layers = [(fill(nn.Conv2d(4, 6, 3)), (2, 4, 5, 5)), (fill(nn.Linear(9, 5)), (3, 9))]
    for dense, shape in layers:
        layer, x = compress_layer(dense, form), normal(*shape, dtype=torch.float32)
        nearest = copy.deepcopy(layer)(x)
        assert torch.equal(layer(x), nearest)
        layer.rounding = "stochastic"
        torch.manual_seed(5)
        drawn = layer(x)
        torch.manual_seed(5)
        rounded = quantize(x, form.activation_format, "stochastic")
        filters = layer.filters()
        assert torch.equal(drawn, (F.linear if x.dim() == 2 else F.conv2d)(rounded, filters, layer.bias))
        assert not torch.equal(filters, layer.eval().filters())
        assert torch.equal(layer(x), nearest)
        with torch.no_grad():
            assert torch.equal(layer(x), nearest)
