import math
import random
import re
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from layers import OvertoneError, UsageError
from layers.blockfloat import ROUNDINGS, BlockFormat, quantize
from layers.blockfloat.format import AXES
from layers.blockfloat.pack import pack_blocks, unpack_blocks

BITS = range(1, 17)
BLOCKS = (1, 2, 3, 7, 16, 31, 128)


def oracle_block(values: list[float], form: BlockFormat) -> list[float]:
    """One block in exact rational arithmetic, straight from the definition."""
    if not all(math.isfinite(value) for value in values):
        return [math.nan] * len(values)
    largest = max(abs(value) for value in values)
    if largest < 2.0**form.lowest:
        return [0.0] * len(values)
    exponent = math.frexp(largest)[1] - 1

    def mantissa(value: float) -> int:
        return round(Fraction(value) / Fraction(2) ** (exponent - form.bits + 1))  # to even

    if mantissa(largest) >= 2**form.bits:
        exponent += 1
    if exponent > -form.lowest - 1:
        return [math.nan] * len(values)
    return [float(mantissa(value) * Fraction(2) ** (exponent - form.bits + 1)) for value in values]


def oracle_members(shape: tuple[int, ...], form: BlockFormat) -> list[list[int]]:
    """For each block the places of its values in the flattened tensor, in the order of the blocks' first values."""
    places = torch.arange(math.prod(shape)).view(shape)
    if form.axis == "flat":
        runs = [places.flatten()]
    elif form.axis == "filter":
        runs = [filter.flatten() for filter in places]
    else:
        runs = list(places.movedim(1, -1).reshape(-1, shape[1])) if places.numel() else []
    blocks = [part.tolist() for run in runs if len(run) for part in run.split(form.block)]
    return sorted(blocks)


def oracle(x: Tensor, form: BlockFormat) -> Tensor:
    values, found = x.flatten().tolist(), torch.empty(x.numel(), dtype=x.dtype)
    for members in oracle_members(tuple(x.shape), form):
        found[members] = torch.tensor(oracle_block([values[i] for i in members], form), dtype=x.dtype)
    return found.view(x.shape)


def equal(one: Tensor, other: Tensor) -> bool:
    """Equal values, NaN where the other is NaN."""
    return bool(torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num()))


def random_shape(rng: random.Random, dims: int) -> tuple[int, ...]:
    return tuple(rng.choice([1, 1, 2, 3, 5, 8, 17]) for _ in range(dims))


def hard_values(rng: random.Random, form: BlockFormat, count: int) -> Tensor:
    """Float32 values at which roundings go wrong: ties, limits of the exponent, subnormals, zeros."""
    top, bottom = -form.lowest - 1, form.lowest
    limit = (2.0**form.bits - 0.5) * 2.0 ** (top + 1 - form.bits)
    edges = [0.0, -0.0, 2.0**bottom, -(2.0**bottom), math.nextafter(2.0**bottom, 0), 2.0**top, 1e-45, -1e-38]
    edges += [limit, math.nextafter(limit, 0), -limit, 2.0**bottom * (1 - 2.0**-24), 1.5 * 2.0**bottom]

    def one() -> float:
        kind = rng.random()
        if kind < 0.2:
            return rng.choice(edges)
        if kind < 0.5:
            return rng.choice([1, -1]) * (rng.randrange(2**form.bits) + 0.5) * 2.0 ** rng.randint(-form.bits, 2)
        return rng.gauss(0, 1) * 2.0 ** rng.choice([0, 0, rng.randint(bottom - 3, top)])

    return torch.tensor([one() for _ in range(count)], dtype=torch.float32)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("exponent_bits", range(2, 8))
def test_quantised_values_are_those_of_rational_arithmetic(bits, exponent_bits, rng):
    for block in (1, rng.choice(BLOCKS), rng.randint(2, 128)):
        form = BlockFormat(bits=bits, block=block, exponent_bits=exponent_bits)
        x = hard_values(rng, form, rng.randint(1, 150))
        assert equal(quantize(x, form), oracle(x, form)), (form, x)


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_are_consecutive_values_of_the_flattened_tensor(block, rng, normal):
    form = BlockFormat(bits=rng.choice(BITS), block=block)
    x = normal(3, 5, 7, dtype=torch.float32) * 2.0 ** torch.arange(-3, 4)
    assert equal(quantize(x, form), oracle(x, form))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dims", [2, 3, 4])
def test_blocks_of_every_axis_are_those_of_rational_arithmetic(axis, dims, rng):
    for _ in range(12):
        form = BlockFormat(bits=rng.choice(BITS), block=rng.choice(BLOCKS), exponent_bits=rng.randint(2, 7), axis=axis)
        shape = random_shape(rng, dims)
        x = hard_values(rng, form, math.prod(shape)).view(shape)
        assert equal(quantize(x, form), oracle(x, form)), (form, x)


def test_filters_and_channels_do_not_share_blocks():
    x = torch.tensor([[[1.0, 1.0], [8.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]])
    x[0, 0, 0] = 64.0  # rounds what shares its block to a multiple of 16

    def gone(axis: str, block: int) -> list[list[int]]:
        return (quantize(x, BlockFormat(bits=3, block=block, axis=axis)) == 0).nonzero().tolist()

    assert gone("flat", 8) == [[0, 0, 1], [0, 1, 0], [0, 1, 1], [0, 2, 0], [0, 2, 1], [1, 0, 0], [1, 0, 1]]
    assert gone("filter", 8) == [[0, 0, 1], [0, 1, 0], [0, 1, 1], [0, 2, 0], [0, 2, 1]]
    assert gone("filter", 4) == [[0, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert gone("channel", 8) == [[0, 1, 0], [0, 2, 0]]
    assert gone("channel", 2) == [[0, 1, 0]]


def random_tensors(draw: st.DrawFn) -> tuple[Tensor, BlockFormat]:
    axis = draw(st.sampled_from(AXES))
    shape = draw(st.lists(st.integers(0, 5), min_size=0 if axis == "flat" else 2, max_size=4))
    count = math.prod(shape)
    values = draw(st.lists(st.floats(width=32), min_size=count, max_size=count))
    form = BlockFormat(
        bits=draw(st.integers(1, 16)), block=draw(st.integers(1, 9)), exponent_bits=draw(st.integers(2, 7)), axis=axis
    )
    return torch.tensor(values, dtype=torch.float32).view(shape), form


@settings(max_examples=150, deadline=None)
@given(drawn=st.composite(random_tensors)())
def test_any_shape_axis_and_block_agree_with_rational_arithmetic_and_have_a_packed_size(drawn):
    x, form = drawn
    once = quantize(x, form)
    assert once.shape == x.shape
    assert equal(once, oracle(x, form))
    assert equal(quantize(once, form), once)
    if once.isfinite().all():
        packed = pack_blocks(x, form)
        assert tuple(part.numel() for part in packed) == form.packed_bytes(x.shape)
        back = unpack_blocks(*packed, form, x.shape)
        assert torch.equal(back.view(torch.int32), once.view(torch.int32))  # zeros without a sign too


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=40),
    bits=st.integers(1, 16),
    block=st.integers(1, 128),
    exponent_bits=st.integers(2, 7),
)
def test_any_float32_values_agree_with_rational_arithmetic_and_stay_when_quantised_again(
    values, bits, block, exponent_bits
):
    form = BlockFormat(bits=bits, block=block, exponent_bits=exponent_bits)
    x = torch.tensor(values, dtype=torch.float32)
    once = quantize(x, form)
    assert equal(once, oracle(x, form))
    assert equal(quantize(once, form), once)


@pytest.mark.parametrize("bits", BITS)
def test_block_of_one_rounds_to_significant_bits_ties_to_even(bits, rng):
    for _ in range(30):
        odd = 1 if bits == 1 else 2 * rng.randrange(2 ** (bits - 2), 2 ** (bits - 1)) + 1
        scale = 2.0 ** rng.randint(-20, 20)
        x = torch.tensor([(odd - 0.5) * scale, (odd + 0.5) * scale, odd * scale])
        below = 0.5 if bits == 1 else odd - 1
        assert quantize(x, BlockFormat(bits=bits)).tolist() == [below * scale, (odd + 1) * scale, odd * scale]


def test_error_is_at_most_half_a_step_of_the_blocks_largest_value(rng, normal):
    for block in BLOCKS:
        bits = rng.choice(BITS)
        x = normal(512, dtype=torch.float32)
        error = (quantize(x, BlockFormat(bits=bits, block=block)) - x).abs()
        for start in range(0, 512, block):
            part = slice(start, start + block)
            step = 2.0 ** (math.frexp(x[part].abs().max().item())[1] - bits)
            assert error[part].max() <= step  # twice half a step, where the largest value rounds up to a power of two


@pytest.mark.parametrize("block", [1, 4])
def test_what_cannot_be_held_becomes_zero_or_nan(block):
    form = BlockFormat(bits=8, block=block)
    tiny = 2.0**-64 * (1 - 2.0**-24)
    assert quantize(torch.full((4,), tiny), form).tolist() == [0.0] * 4
    assert quantize(torch.full((4,), 2.0**-64), form).tolist() == [2.0**-64] * 4
    assert quantize(torch.full((4,), 255.4 * 2.0**56), form).tolist() == [255 * 2.0**56] * 4
    for bad in (math.nan, math.inf, -math.inf, 2.0**64, -255.5 * 2.0**56, 3e38):
        assert quantize(torch.full((4,), bad), form).isnan().all()


def test_one_bad_value_spoils_its_block_and_no_other():
    x = torch.ones(10)
    x[5] = math.inf
    found = quantize(x, BlockFormat(bits=4, block=4))
    assert found.isnan().tolist() == [False] * 4 + [True] * 4 + [False] * 2
    assert quantize(x, BlockFormat(bits=4)).isnan().tolist() == [False] * 5 + [True] + [False] * 4


def test_zeros_of_either_sign_stay_zero():
    for block in (1, 3, 128):
        found = quantize(torch.tensor([0.0, -0.0, 0.0, -0.0]), BlockFormat(bits=4, block=block))
        assert found.tolist() == [0.0] * 4
        assert not found.signbit().any()
    small = quantize(torch.tensor([-1e-3, -0.0, 1.0, -1.0]), BlockFormat(bits=4, block=4))
    assert small.tolist() == [0.0, 0.0, 1.0, -1.0]
    assert small.signbit().tolist() == [False, False, False, True]


@pytest.mark.parametrize("bits", BITS)
def test_fast_path_of_block_one_equals_the_general_path(bits, generator):
    form = BlockFormat(bits=bits)
    patterns = torch.randint(-(2**31), 2**31, (20_000,), generator=generator).to(torch.int32)
    x = patterns.view(torch.float32)
    x = x[x.abs() < (2.0**bits - 0.5) * 2.0 ** (64 - bits)]
    assert len(x) > 10_000
    assert torch.equal(quantize(x, form), unpack_blocks(*pack_blocks(x, form), form, x.shape))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("block", BLOCKS)
def test_unpacked_is_what_was_quantised(bits, block, rng, normal):
    form = BlockFormat(bits=bits, block=block, exponent_bits=rng.randint(4, 7), axis=rng.choice(AXES))
    shape = torch.Size([rng.randint(1, 5), rng.randint(1, 9), rng.randint(1, 9)])
    x = normal(*shape, dtype=torch.float32)
    mantissas, exponents = pack_blocks(x, form)
    assert mantissas.dtype == exponents.dtype == torch.uint8
    assert (mantissas.numel(), exponents.numel()) == form.packed_bytes(x.shape)
    found = unpack_blocks(mantissas, exponents, form, shape)
    assert found.dtype == torch.float32
    assert torch.equal(found, quantize(x, form))
    again = pack_blocks(found, form)
    assert torch.equal(again[0], mantissas)
    assert torch.equal(again[1], exponents)


@pytest.mark.parametrize("_", range(10))
def test_packed_bits_are_sign_and_mantissa_then_exponent_offset_most_significant_first(_, rng, normal):
    widths = {"bits": rng.choice(BITS), "block": rng.choice(BLOCKS), "exponent_bits": rng.randint(4, 7)}
    form = BlockFormat(**widths, axis=rng.choice(AXES))
    x = normal(rng.randint(1, 9), rng.randint(1, 20), rng.randint(1, 4), dtype=torch.float32)
    mantissas, exponents = ("".join(f"{byte:08b}" for byte in part.tolist()) for part in pack_blocks(x, form))
    expected, blocks = oracle(x, form).flatten().tolist(), oracle_members(tuple(x.shape), form)
    for block, i in ((number, i) for number, members in enumerate(blocks) for i in members):
        code, value = mantissas[i * (form.bits + 1) : (i + 1) * (form.bits + 1)], expected[i]
        exponent = int(exponents[block * form.exponent_bits : (block + 1) * form.exponent_bits], 2) + form.lowest
        assert (-1) ** int(code[0]) * int(code[1:], 2) * 2.0 ** (exponent - form.bits + 1) == value


def test_packed_bytes_of_the_papers_formats():
    # Table 4 of Costain & Prisacariu: 16 bits a weight at 8 mantissa bits, 12 at 4, block size 1.
    assert sum(BlockFormat(bits=8).packed_bytes((1000,))) == 2000
    assert sum(BlockFormat(bits=4).packed_bytes((1000,))) == 1500
    assert BlockFormat(bits=4, block=16).packed_bytes((1000,)) == (625, (63 * 7 + 7) // 8)
    assert BlockFormat(bits=7, block=128, exponent_bits=2).packed_bytes((129,)) == (129, 1)
    assert BlockFormat(bits=2).packed_bytes((0,)) == (0, 0)


def test_packed_bytes_of_blocks_that_end_with_their_filter_or_channels():
    shape, eight = (4, 10, 3, 3), {"bits": 7, "exponent_bits": 4}
    assert BlockFormat(**eight, block=16).packed_bytes(shape) == (360, math.ceil(23 / 2))
    assert BlockFormat(**eight, block=16, axis="filter").packed_bytes(shape) == (360, 4 * 6 // 2)
    assert BlockFormat(**eight, block=16, axis="channel").packed_bytes(shape) == (360, 4 * 9 // 2)
    assert BlockFormat(**eight, block=4, axis="channel").packed_bytes(shape) == (360, 4 * 9 * 3 // 2)
    assert BlockFormat(**eight, axis="channel").packed_bytes(shape) == BlockFormat(**eight).packed_bytes(shape)


@pytest.mark.parametrize("block", [1, 8])
def test_empty_tensors_pack_and_come_back(block):
    form = BlockFormat(bits=5, block=block)
    empty = torch.zeros(0, 2, 3)
    assert quantize(empty, form).shape == empty.shape
    packed = pack_blocks(empty, form)
    assert [part.numel() for part in packed] == [0, 0]
    assert unpack_blocks(*packed, form, empty.shape).shape == empty.shape


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e38, 4.0])
def test_what_is_not_finite_or_too_large_does_not_pack(bad):
    x = torch.tensor([1.0, bad])
    with pytest.raises(OvertoneError, match=r"^values must be finite and within the range of the exponent$"):
        pack_blocks(x, BlockFormat(bits=4, exponent_bits=2))


@pytest.mark.parametrize("block", [1, 5])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_gradient_passes_straight_through(block, rounding, normal):
    x = normal(4, 9, dtype=torch.float32)
    x[0, 0], x[1, 1], x[2, 2] = math.nan, 1e-30, 0.0
    x.requires_grad_()
    upstream = normal(4, 9, dtype=torch.float32)
    quantize(x, BlockFormat(bits=3, block=block), rounding).backward(upstream)
    assert torch.equal(x.grad, upstream)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("block", [1, 6])
def test_dtype_is_kept_and_the_values_are_those_of_float32(dtype, block, rng, normal):
    form = BlockFormat(bits=rng.choice(BITS), block=block)
    x = normal(5, 7, dtype=torch.float32).to(dtype)
    found = quantize(x, form)
    assert found.dtype == dtype
    assert torch.equal(found, oracle(x.float(), form).to(dtype))


@pytest.mark.parametrize("block", [1, 6])
@pytest.mark.parametrize("axis", AXES)
def test_any_memory_layout_gives_the_same_values_and_leaves_its_input_alone(block, axis, rng, normal):
    form = BlockFormat(bits=rng.choice(BITS), block=block, axis=axis)
    dense = normal(2, 4, 6, 5, dtype=torch.float32)
    expected = oracle(dense, form)
    wide = dense.repeat_interleave(2, 3)
    layouts = (dense.contiguous(memory_format=torch.channels_last), wide[..., ::2], dense.mT.contiguous().mT)
    for x in layouts:
        before = x.clone()
        assert torch.equal(quantize(x, form), expected)
        assert torch.equal(x, before)
    assert torch.equal(quantize(dense[:1].expand(3, -1, -1, -1), form), oracle(dense[:1].expand(3, -1, -1, -1), form))
    if axis == "flat":
        assert quantize(dense[0, 0, 0, 0], form).shape == ()


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_blocks_of_one_and_of_channels_keep_channels_last(rounding, normal):
    x = normal(2, 4, 6, 5, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    for form in (BlockFormat(bits=4), BlockFormat(bits=4, block=3, axis="channel")):
        assert quantize(x, form, rounding).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"bits": 0}, r"bits \(=0\) must be a whole number from 1 to 16$"),
        ({"bits": 17}, r"bits \(=17\) must be"),
        ({"bits": 8.0}, r"bits \(=8\.0\) must be"),
        ({"bits": 8, "block": 0}, r"block \(=0\) must be a whole number from 1 to 128$"),
        ({"bits": 8, "block": 129}, r"block \(=129\) must be"),
        ({"bits": 8, "exponent_bits": 1}, r"exponent_bits \(=1\) must be a whole number from 2 to 7$"),
        ({"bits": 8, "exponent_bits": 8}, r"exponent_bits \(=8\) must be"),
        ({"bits": 8, "axis": "row"}, r"axis \(='row'\) must be one of flat, filter, channel$"),
    ],
)
def test_formats_outside_the_limits_are_refused(asked, message):
    with pytest.raises(UsageError, match=message):
        BlockFormat(**asked)


@pytest.mark.parametrize("axis", ["filter", "channel"])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_tensors_without_channels_know_flat_blocks_alone(axis, shape):
    form = BlockFormat(bits=4, block=2, axis=axis)
    message = rf"axis \(='{axis}'\) must be flat for a tensor of the shape {re.escape(str(shape))}"
    for call in (lambda: quantize(torch.ones(shape), form), lambda: form.packed_bytes(shape)):
        with pytest.raises(UsageError, match=message):
            call()


def test_roundings_that_do_not_exist_are_refused():
    with pytest.raises(UsageError, match=r"rounding \(='up'\) must be one of nearest, stochastic$"):
        quantize(torch.ones(3), BlockFormat(bits=4), "up")
