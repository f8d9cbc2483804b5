"""Whole numbers with a scale a filter, against arithmetic on each value by itself."""

import struct
from fractions import Fraction

import pytest
import torch
from torch import nn

from layers import LayerForm, OvertoneError, UsageError, compress_layer
from layers.blockfloat import ScaledFormat, quantize
from layers.blockfloat.pack import pack_values, unpack_codes, unpack_values


def as_bfloat16(value: float) -> tuple[float, bytes]:
    """Rounded to nearest even on the upper 16 bits of float32, and those as bytes."""
    pattern = struct.unpack("<I", struct.pack("<f", value))[0]
    pattern = (pattern + 0x7FFF + (pattern >> 16 & 1)) >> 16
    return struct.unpack("<f", struct.pack("<I", pattern << 16))[0], struct.pack("<H", pattern)


def filter_by_hand(row: list[float], bits: int) -> tuple[list[int], float, bytes]:
    """Whole numbers, scale and its bytes."""
    most = 2**bits - 1
    scale, data = as_bfloat16(float(torch.tensor(max(map(abs, row))) / most))
    return [max(-most, min(most, round(Fraction(v) / Fraction(scale)))) for v in row], scale, data


@pytest.fixture(params=range(2, 8))
def scaled(request):
    return ScaledFormat(bits=request.param)


def test_each_value_is_its_filters_scale_times_the_nearest_whole_number(scaled, normal):
    x = normal(6, 3, 2, 3, dtype=torch.float32) * 2.0 ** (20 * normal(6, 1, 1, 1, dtype=torch.float32)).clamp(-40, 40)
    found, (mantissas, scales) = quantize(x, scaled), pack_values(x, scaled)
    codes = unpack_codes(mantissas, scaled.bits + 1, x.numel()).view(6, -1)
    for row, values, packed, data in zip(x, found, codes, scales.view(6, 2), strict=True):
        whole, scale, expected = filter_by_hand(row.flatten().tolist(), scaled.bits)
        assert max(map(abs, whole)) == scaled.highest
        assert [n * scale for n in whole] == values.flatten().tolist()
        assert [abs(n) + (n < 0) * 2**scaled.bits for n in whole] == packed.tolist()
        assert bytes(data.tolist()) == expected
    assert (mantissas.numel(), scales.numel()) == scaled.packed_bytes(x.shape)


def test_rounding_twice_changes_nothing_and_packing_keeps_it(scaled, normal):
    x = (normal(400, 7, dtype=torch.float32) * 3).exp() * normal(400, 7, dtype=torch.float32).sign()
    once = quantize(x, scaled)
    assert torch.equal(quantize(once, scaled), once)
    assert torch.equal(unpack_values(pack_values(x, scaled), scaled, x.shape), once)
    assert ((once - x).abs() <= 0.502 * x.abs().amax(1, keepdim=True) / scaled.highest).all()


def test_filters_out_of_range(scaled):
    rows = torch.tensor([[0.0, 0.0], [2.0**-65, -(2.0**-66)], [2.0**64, 1.0], [torch.inf, 1.0], [torch.nan, 1.0]])
    found = quantize(rows, scaled)
    assert found[:2].eq(0).all()
    assert not found[:2].signbit().any()
    assert found[2:].isnan().all()
    with pytest.raises(OvertoneError, match=r"^values must be finite and below 2\^64$"):
        pack_values(rows, scaled)
    for shape in ((0, 3), (2, 1)):
        x = torch.zeros(shape)
        assert torch.equal(unpack_values(pack_values(x, scaled), scaled, x.shape), x)


@pytest.mark.parametrize("scale", [-1.0, torch.nan, torch.inf, 2.0**63, 2.0**-100])
def test_scales_that_no_filter_has_are_refused(scale):
    form = ScaledFormat(bits=3)
    mantissas, scales = pack_values(torch.tensor([[7.0, -3.0], [1.0, 7.0]]), form)
    scales.view(torch.bfloat16)[1] = scale
    with pytest.raises(
        OvertoneError, match=r"^the largest magnitude of each filter must be 7 of its scale, or all be 0$"
    ):
        unpack_values((mantissas, scales), form, torch.Size((2, 2)))


def test_magnitudes_that_leave_a_scale_unused_are_refused():
    mantissas, scales = torch.tensor([0x65], dtype=torch.uint8), torch.tensor([1.0]).bfloat16().view(torch.uint8)
    with pytest.raises(OvertoneError, match=r"^the largest magnitude of each filter must be 7 of its scale"):
        unpack_values((mantissas, scales), ScaledFormat(bits=3), torch.Size((1, 2)))


def test_stochastic_rounding_has_the_values_as_its_mean(normal):
    form, x = ScaledFormat(bits=3), normal(4, 5, dtype=torch.float32)
    step = x.abs().amax(1, keepdim=True) / form.highest
    inside = x.abs() < 6.5 * step
    torch.manual_seed(0)
    mean = torch.stack([quantize(x, form, "stochastic") for _ in range(4000)]).mean(0)
    assert ((mean - x).abs() / step)[inside].max() < 0.05


def test_gradients_pass_straight_through(fill, normal):
    form = LayerForm(bits=3, scale="bfloat16")
    for dense, x in ((fill(nn.Conv2d(4, 6, 3)), normal(2, 4, 5, 5)), (fill(nn.Linear(9, 5)), normal(3, 9))):
        layer = compress_layer(dense, form)
        layer(x.float()).square().sum().backward()
        expected = type(dense)(*([4, 6, 3] if x.dim() == 4 else [9, 5]))
        expected.load_state_dict({"weight": layer.filters().view_as(dense.weight), "bias": layer.bias})
        expected(x.float()).square().sum().backward()
        torch.testing.assert_close(layer.coefficients.grad.view_as(dense.weight), expected.weight.grad)


@pytest.mark.parametrize("bits", [1, 8, 3.0, None])
def test_only_few_bits_have_a_scale(bits):
    with pytest.raises(UsageError, match=r"^bits \(=.*\) must be a whole number from 2 to 7 with a scale$"):
        ScaledFormat(bits=bits)
