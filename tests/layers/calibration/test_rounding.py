"""Rounding that knows the outputs: against exhaustive search, plain rounding, and the formats' own rounding."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from layers import CompressedConv2d, CompressedLinear, LayerForm
from layers.blockfloat import BlockFormat, quantize
from layers.blockfloat.format import AXES
from layers.blockfloat.reference import cut_blocks
from layers.calibration import rounding
from layers.calibration.rounding import block_steps, round_in_turn
from layers.calibration.series import OutputRegression
from layers.calibration.templates import TemplateRegression


@pytest.fixture
def moments(normal):
    """Second moments of correlated inputs, for each of some parts."""

    def draw(parts: int, size: int) -> Tensor:
        inputs = normal(parts, 4 * size, size) @ normal(parts, size, size)
        return inputs.mT @ inputs

    return draw


def cost(values: Tensor, rounded: Tensor, gram: Tensor) -> Tensor:
    """The squared error of each row's outputs, (K, R)."""
    return (((rounded - values) @ gram) * (rounded - values)).sum(2)


@pytest.mark.parametrize("bits", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [1, 5, 70, 130])
def test_outputs_change_less_than_by_rounding_each_value(bits, size, moments, normal):
    values, gram = normal(2, 7, size), moments(2, size)
    steps = values.abs().amax(2, keepdim=True).expand_as(values) / (2**bits - 0.5)
    found = round_in_turn(values, gram, steps, bits)
    mantissas = found / steps
    assert torch.allclose(mantissas, mantissas.round(), atol=1e-9)
    assert mantissas.abs().max() <= 2**bits - 1 + 1e-9
    each = (values / steps).round().clamp(1 - 2**bits, 2**bits - 1) * steps
    assert cost(values, found, gram).sum() <= cost(values, each, gram).sum() * (1 + 1e-9)
    if size >= 70:
        assert cost(values, found, gram).sum() < 0.8 * cost(values, each, gram).sum()


@pytest.mark.parametrize("_", range(10))
def test_no_single_value_can_be_rounded_better_in_the_end(_, moments, normal, monkeypatch):
    monkeypatch.setattr(rounding, "_SWEEPS", 100)
    values, gram = normal(1, 4, 4), moments(1, 4)
    steps = values.abs().amax(2, keepdim=True).expand_as(values) / 3
    found = round_in_turn(values, gram, steps, 2)
    reached = cost(values, found, gram)[0]
    for column, mantissa in itertools.product(range(4), range(-3, 4)):
        other = found.clone()
        other[:, :, column] = mantissa * steps[:, :, column]
        assert (cost(values, other, gram)[0] >= reached * (1 - 1e-9)).all()


def test_values_whose_inputs_are_zero_are_rounded_to_nearest(normal):
    values = normal(1, 3, 6)
    steps = torch.full_like(values, 0.5)
    assert torch.equal(
        round_in_turn(values, torch.zeros(1, 6, 6, dtype=values.dtype), steps, 4), (values * 2).round() / 2
    )


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("bits", [1, 2, 5])
def test_each_block_has_the_exponent_of_least_error(bits, axis, normal, rng):
    form = BlockFormat(bits=bits, block=rng.choice([1, 3, 16]), axis=axis)
    values = normal(3, 5, 2, 2) * 10 ** normal(3, 5, 1, 1)
    weights = normal(3, 5, 2, 2).square()
    blocks, weighted, steps = (cut_blocks(t, form) for t in (values, weights, block_steps(values, weights, form)))
    own = cut_blocks(quantize(values.float(), form).double(), form).abs().amax(2)
    highest = 2.0 ** (torch.frexp(own).exponent - bits)
    step = steps.amax(2)
    assert ((steps == step[:, :, None]) | (blocks == 0)).all()
    assert ((step / highest).log2().round() == (step / highest).log2()).all()

    def error(step: Tensor) -> Tensor:
        step = step[:, :, None]
        rounded = (blocks / step).round().clamp(1 - 2**bits, 2**bits - 1) * step
        return ((rounded - blocks).square() * weighted).sum(2)

    for lower in range(3):
        assert (error(step) <= error(highest * 2.0**-lower) * (1 + 1e-9)).all()


def test_a_block_beyond_the_largest_exponent_stays_no_number(normal):
    """As by plain rounding: packing refuses it, and nothing turns it into zeros."""
    form = BlockFormat(bits=4, block=3, exponent_bits=2)
    values = torch.tensor([[0.5, 1.0, 0.25, 9.0, 0.5, 0.5]], dtype=torch.float64)
    steps = block_steps(values, torch.ones_like(values), form)
    assert quantize(values, form).isnan().tolist() == steps.isnan().tolist() == [[False] * 3 + [True] * 3]
    assert round_in_turn(values[None], torch.eye(6, dtype=torch.float64)[None], steps[None], 4)[0, 0, 3:].isnan().all()


@pytest.mark.parametrize("_", range(30))
def test_what_is_rounded_so_is_what_the_layer_computes_with(_, rng, fill, normal):
    """For raw filters, series, allocated ones, templates and gains, whatever shares an exponent."""
    groups = rng.choice([1, 2])
    conv = fill(nn.Conv2d(4, 8, 3, padding=1, groups=groups, bias=rng.random() < 0.5).double())
    kinds = [
        {},
        {"basis": "cosine", "harmonics": (2, 2)},
        {"basis": "chebyshev", "harmonics": (2, 1), "allocation": "filter"},
        {"templates": 3, "transform": rng.choice(["scalar", "zero", "rotation"]), "groups": rng.choice([1, 2])},
        {"basis": "cosine", "harmonics": (2, 3), "templates": 4, "transform": "scalar", "assignment": "residual"},
    ]
    form = LayerForm(
        bits=rng.randint(1, 6),
        exponent_block=rng.choice([1, 5, 16]),
        exponent_axis=rng.choice(AXES),
        **rng.choice(kinds),
    )
    layer = CompressedConv2d(conv, form)
    x = normal(12, 4, 8, 8)
    outputs = conv(x).detach()
    if form.templates is None:
        regression = OutputRegression(layer, images=rng.choice([None, 12]))
        regression.add(x, outputs)
        layer.set_coefficients(regression.rounded(regression.solve()))
    else:
        fitted = TemplateRegression(layer)
        fitted.add(x, outputs)
        fitted.apply(conv.weight.detach())
    stored = [layer.coefficients, *([layer.transforms()] if form.transform == "scalar" else [])]
    for tensor in stored:
        assert torch.equal(quantize(tensor.detach(), form.weight_format), tensor.detach())


@pytest.mark.parametrize("bits", [1, 2, 3])
@torch.no_grad()
def test_outputs_stay_nearer_than_by_rounding_alone(bits, fill, normal):
    mixed = normal(6, 6)
    for layer, x in (
        (fill(nn.Conv2d(6, 8, 3, padding=1).double()), torch.einsum("bchw,cd->bdhw", normal(16, 6, 9, 9), mixed)),
        (fill(nn.Linear(6, 8).double()), normal(64, 6) @ mixed),
    ):
        make = CompressedConv2d if isinstance(layer, nn.Conv2d) else CompressedLinear
        compressed = make(layer, LayerForm(bits=bits, exponent_block=16))
        outputs = layer(x).detach()
        before = float((compressed(x) - outputs).square().sum())
        regression = OutputRegression(compressed)
        regression.add(x, outputs)
        compressed.set_coefficients(regression.rounded(regression.solve()))
        assert float((compressed(x) - outputs).square().sum()) < 0.9 * before


def test_a_layer_that_shares_no_exponents_keeps_its_coefficients(fill, normal):
    conv = fill(nn.Conv2d(4, 6, 3).double())
    layer = CompressedConv2d(conv, LayerForm(bits=3, scale="bfloat16"))
    regression = OutputRegression(layer)
    x = normal(4, 4, 6, 6)
    regression.add(x, conv(x).detach())
    solved = regression.solve()
    assert torch.equal(regression.rounded(solved), solved)
