import random

import pytest
import torch
from torch import Tensor

from layers.blockfloat import BlockFormat, kernels, quantize
from layers.blockfloat.format import AXES
from layers.blockfloat.reference import round_reference
from tests.layers.blockfloat.patterns import BIT_PATTERNS, any_pattern, same_bits


@pytest.fixture
def compiled() -> None:
    if kernels.kernel(torch.float32) is None:
        pytest.skip("there is no C compiler")


@pytest.fixture
def without_kernel(without_compiler):
    """A process that has found no C compiler."""
    kernels.kernel.cache_clear()
    yield
    kernels.kernel.cache_clear()


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", BIT_PATTERNS)
def test_kernel_equals_plain_pytorch_bit_for_bit(bits, axis, dtype, rng: random.Random, generator):
    for block in (1, 8, 16, 32, rng.randint(2, 128), 128):
        form = BlockFormat(bits=bits, block=block, exponent_bits=rng.randint(2, 7), axis=axis)
        shape = (rng.randint(1, 6), rng.randint(1, 150), *rng.choice([(), (3, 3), (1, 1), (19, 31)]))
        x = any_pattern(generator, *shape).to(dtype)
        found = torch.full_like(x, 7.0)
        kernels.round_into(found, x, form)
        assert same_bits(found, round_reference(x, form)), (form, shape)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("bits", range(1, 17))
def test_every_bfloat16_is_rounded_as_the_float32_that_it_is(bits, rng, generator):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    mixed = every[torch.randperm(len(every), generator=generator)]
    for block in (1, rng.randint(2, 128)):
        form = BlockFormat(bits=bits, block=block)
        expected = round_reference(mixed.float(), form)
        assert kernels.is_supported(mixed)
        assert same_bits(quantize(mixed, form), expected.bfloat16())
        assert torch.equal(expected.bfloat16().float().nan_to_num(), expected.nan_to_num())


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("threads", [2, 3])
def test_parts_of_large_tensors_meet_wherever_blocks_end(axis, threads, rng, generator):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for block in (1, 7, 16):
            form = BlockFormat(bits=6, block=block, axis=axis)
            x = torch.randn(5, rng.randint(300, 310), 29, 37, generator=generator)  # three parts at least
            for kind in (x, x.bfloat16()):
                assert same_bits(quantize(kind, form), round_reference(kind, form))
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("without_kernel")
def test_without_a_compiler_the_values_are_the_same(generator):
    x = any_pattern(generator, 4, 9, 3, 3)
    forms = [BlockFormat(bits=5, block=block, axis=axis) for block in (1, 4) for axis in AXES]
    assert kernels.kernel(torch.float32) is None
    for form in forms:
        assert same_bits(quantize(x, form), round_reference(x, form))


@pytest.mark.usefixtures("without_kernel")
def test_without_a_compiler_plain_pytorch_rounds():
    assert kernels.kernel(torch.float32) is None
    assert quantize(torch.tensor([1.0, 3.3]), BlockFormat(bits=2)).tolist() == [1.0, 3.0]


@pytest.mark.parametrize("block", [1, 4])
def test_compiled_networks_hold_plain_pytorch(block, normal):
    form, x = BlockFormat(bits=5, block=block), normal(3, 7, dtype=torch.float32)
    compiled = torch.compile(lambda x: 2 * quantize(x, form), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), 2 * quantize(x, form))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated")
def test_kernel_takes_nothing_that_is_traced_or_elsewhere(normal):
    taken = []

    def call(x: Tensor) -> Tensor:
        taken.append(kernels.is_supported(x))
        return x + 1

    torch.jit.trace(call, normal(3), check_trace=False)
    assert taken == [False]
    on_meta = torch.ones(3, 7, device="meta")
    assert not kernels.is_supported(on_meta)
    assert quantize(on_meta, BlockFormat(bits=5, block=4)).shape == (3, 7)


@pytest.mark.slow
@pytest.mark.parametrize("axis", AXES)
def test_inductor_gives_the_same_bits(axis, generator):
    form = BlockFormat(bits=6, block=5, axis=axis)
    x = any_pattern(generator, 3, 17, 4)
    found = torch.compile(lambda x: quantize(x, form), fullgraph=True)(x)
    assert torch.equal(found.isnan(), quantize(x, form).isnan())
    assert torch.equal(found.nan_to_num(), quantize(x, form).nan_to_num())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("block", [1, 16])
@pytest.mark.parametrize("dtype", BIT_PATTERNS)
def test_cuda_gives_the_same_values(axis, block, dtype, generator):
    form = BlockFormat(bits=6, block=block, axis=axis)
    x = any_pattern(generator, 3, 17, 4).to(dtype)
    found = quantize(x.cuda(), form).cpu()
    assert torch.equal(found.isnan(), quantize(x, form).isnan())
    assert torch.equal(found.nan_to_num(), quantize(x, form).nan_to_num())
