"""The CUDA kernels of template convolutions: compiled for every architecture, and run from their source on the CPU."""

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from layers.errors import OvertoneWarning
from layers.kernels import CSRC, gpu
from layers.templates import cuda
from layers.templates.gather import _layout
from layers.templates.reference import ConvGeometry, gather_backward_reference, gather_reference
from tests.layers.assembled import assert_in_registers
from tests.layers.blockfloat.patterns import any_pattern

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KINDS = list(itertools.product([False, True], repeat=2))
NAMES = ("outputs", "to maps", "to operators")
MARGIN = 64
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}

all_kinds = pytest.mark.parametrize(("last", "diagonal"), KINDS)


@pytest.mark.skipif(not gpu.installed(), reason="the package cuda-core is not installed")
@pytest.mark.parametrize("wide", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_kernels_compile_without_warnings_and_keep_everything_in_registers(arch, dtype, wide):
    for last, diagonal in KINDS:
        macros = cuda.macros(dtype, last=last, diagonal=diagonal, wide=wide)
        assert_in_registers("gather.cu", arch, macros, ["gather", "gather_to_maps", "gather_to_operators"])


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The kernels' source as a library for the CPU, by its macros."""
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    folder, source = tmp_path_factory.mktemp("kernels"), Path(__file__).parents[1] / "csrc" / "gather_on_cpu.cpp"
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-Wall", "-Werror", "-Wno-unused-function"]
    built = {}

    def build(macros):
        if macros not in built:
            file, defined = folder / f"{'_'.join(macros)}.so", [f"-D{macro}" for macro in macros]
            command = ["c++", *flags, "-x", "c++", *defined, f"-I{CSRC}", "-o", str(file), str(source)]
            subprocess.run(command, check=True)
            built[macros] = ctypes.CDLL(str(file))
        return built[macros]

    return build


@pytest.fixture
def on_cpu(library, monkeypatch, rng):
    """Launches go to the CPU, on a few blocks of its own; lists their macros."""
    launched = []
    monkeypatch.setattr(cuda, "_BLOCKS", rng.choice([1, 8, 32, 512]))

    def launch(source, name, args, *, device, grid, block, macros):
        assert source == "gather.cu"
        assert grid > 0
        types = {int: ctypes.c_void_p, np.int32: ctypes.c_int, np.int64: ctypes.c_longlong}
        blocks = ctypes.c_uint(min(grid, rng.randint(1, 3)))
        getattr(library(macros), f"run_{name}")(blocks, *(types[type(value)](int(value)) for value in args))
        launched.append(macros)

    monkeypatch.setattr(gpu, "launch", launch)
    return launched


@pytest.fixture
def draw(rng, generator):
    """Random maps (of some layout), operators, sources of which some are out of range, gradient, and where taps lie."""

    def tensors(kernel, *, last, diagonal, most=4):
        geometry = ConvGeometry(kernel, *(tuple(rng.randint(*ends) for _ in "yx") for ends in ((1, 3), (0, 2), (1, 2))))
        groups, templates, outputs = rng.randint(1, 2), rng.randint(1, 3), rng.randint(1, 9 if diagonal else 4)
        taps = kernel[0] * kernel[1]
        size = [
            max(dilation * (k - 1) + 1 - 2 * pad, 1) + rng.randint(1, most)
            for k, pad, dilation in zip(kernel, geometry.padding, geometry.dilation, strict=True)
        ]
        maps = torch.randn(rng.randint(1, 3), groups * taps * templates, *size, generator=generator)
        operators = torch.randn(outputs, groups, *[taps] * (1 if diagonal else 2), generator=generator)
        if not diagonal:
            operators[torch.rand(operators.shape, generator=generator) < 0.3] = 0.0
        choices = [*range(templates), *range(templates), -1, templates, 2**31 + 1, -(2**63)]
        source = torch.tensor(rng.choices(choices, k=outputs))
        grad = torch.randn(gather_reference(maps, operators, source, geometry).shape, generator=generator)
        maps = maps.contiguous(memory_format=torch.channels_last) if last else maps
        return maps, grad.contiguous(memory_format=_layout(maps)), operators, source, geometry

    return tensors


def between_margins(like, fill):
    """Memory for a tensor laid out like another, and all of it with what lies next to it."""
    memory = torch.full((like.numel() + 2 * MARGIN,), fill, dtype=like.dtype, device=like.device)
    return memory.as_strided(like.shape, like.stride(), MARGIN), memory


def found(maps, grad, operators, source, geometry):
    """What the kernels give, once seen that they wrote nothing else; what they read lies between NaN."""
    given = [between_margins(x, torch.nan)[0].copy_(x) for x in (maps, grad, operators)]
    tensors, memories = zip(*(between_margins(x, 7.0) for x in (grad, maps, operators)), strict=True)
    cuda.gather(tensors[0], given[0], given[2], source, geometry)
    cuda.gather_backward(*tensors[1:], given[1], given[0], given[2], source, geometry)
    for memory in memories:
        assert memory[:MARGIN].eq(7).all()
        assert memory[-MARGIN:].eq(7).all()
    return tensors


def expected(maps, grad, operators, source, geometry):
    outputs = gather_reference(maps, operators, source, geometry)
    return outputs, *gather_backward_reference(grad, maps, operators, source, geometry)


def assert_right(maps, grad, operators, source, geometry):
    context = maps.shape, operators.shape, source, geometry
    wanted = expected(*(x.cpu().double() for x in (maps, grad, operators)), source.cpu(), geometry)
    for name, x, y in zip(NAMES, found(maps, grad, operators, source, geometry), wanted, strict=True):
        near = TOLERANCE[x.dtype] * y.abs().max().clamp(min=1).item()
        assert torch.allclose(x.cpu().double(), y, rtol=0, atol=near), (name, context)


@all_kinds
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (1, 3), (5, 2)])
def test_kernels_give_what_the_definition_says(on_cpu, draw, kernel, last, diagonal):
    for _ in range(4 if diagonal else 1):
        assert_right(*draw(kernel, last=last, diagonal=diagonal))


@all_kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_added_up_in_float32(on_cpu, draw, dtype, last, diagonal):
    *tensors, source, geometry = draw((2, 2), last=last, diagonal=diagonal)
    assert_right(*(x.to(dtype) for x in tensors), source, geometry)


@pytest.mark.parametrize(("last", "diagonal"), [(False, True), (True, False)])
def test_large_tensors_are_counted_in_64_bits(on_cpu, draw, monkeypatch, last, diagonal):
    monkeypatch.setattr(cuda, "_WIDE_VALUES", 1)
    assert_right(*draw((2, 2), last=last, diagonal=diagonal))
    assert all("WIDE" in macros for macros in on_cpu)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_rounded_to_nearest_even(library, generator, dtype):
    ties = torch.arange(-(2**15), 2**15, dtype=torch.int32).bitwise_left_shift(16).add(2**15).view(torch.float32)
    x = torch.cat([any_pattern(generator, 10_000), ties, ties[::2] * 0.125, torch.tensor([65520.0, 65519.0])])
    nan = torch.tensor([2**31 - 1, -1], dtype=torch.int32).view(torch.float32)
    x, y = torch.cat([x, nan]), torch.empty(len(x) + 2, dtype=dtype)
    run = library(cuda.macros(dtype, last=False, diagonal=True, wide=False)).run_narrowed
    run(ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), len(x))
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y[~x.isnan()].view(torch.int16), x[~x.isnan()].to(dtype).view(torch.int16))


def test_without_values_nothing_is_launched(on_cpu):
    geometry, source = ConvGeometry((1, 1), (1, 1), (0, 0), (1, 1)), torch.zeros(3, dtype=torch.int64)
    for batch, templates, outputs in ((0, 2, 3), (2, 0, 3), (2, 2, 0)):
        maps, operators = torch.ones(batch, templates, 4, 5), torch.ones(outputs, 1, 1)
        grad = torch.ones(batch, outputs, 4, 5)
        for x in found(maps, grad, operators, source[:outputs], geometry):
            assert x.eq(0).all()
    assert not on_cpu


SHAPES = {"maps": (2, 24, 8, 9), "out": (2, 32, 4, 6), "geometry": ConvGeometry((2, 2), (2, 1), (1, 0), (1, 3))}
NUMBERS = (2, 32, 2, 3, 8, 9, 4, 6, 2, 2, 2, 1, 1, 0, 1, 3)


@pytest.mark.parametrize(
    ("name", "taps", "last", "expected"),
    [
        ("gather", (4,), False, (NUMBERS, 6)),
        ("gather", (4, 4), True, (NUMBERS, 6)),
        ("gather_to_maps", (4,), True, (NUMBERS, 14)),
        ("gather_to_operators", (4,), False, ((1, *NUMBERS), 256)),
        ("gather_to_operators", (4,), True, ((1, *NUMBERS), 256)),
        ("gather_to_operators", (4, 4), False, ((1, *NUMBERS), 1024)),
        ("gather_to_operators", (4, 4), True, ((2, *NUMBERS), 512)),
    ],
)
def test_blocks_are_as_many_as_the_values_need(name, taps, last, expected):
    assert cuda.plan(name, operators=(32, 2, *taps), last=last, **SHAPES) == expected


@pytest.fixture
def is_available():
    cuda.is_available.cache_clear()
    yield cuda.is_available
    cuda.is_available.cache_clear()


def test_without_the_package_gpus_go_without_kernels(monkeypatch, is_available):
    monkeypatch.setattr(gpu, "installed", lambda: False)
    assert not is_available(0)


def test_kernels_that_give_other_values_are_left_alone(monkeypatch, is_available):
    monkeypatch.setattr(gpu, "installed", lambda: True)
    monkeypatch.setattr(cuda, "_agrees", lambda *_: False)
    with pytest.warns(
        OvertoneWarning,
        match=r"^template convolutions on cuda:0 do not use our kernels: their values are not those of plain PyTorch$",
    ):
        assert not is_available(0)


@pytest.mark.parametrize(("dtype", "last", "diagonal"), cuda._TRIALS)
def test_the_self_check_takes_right_kernels_alone(on_cpu, monkeypatch, dtype, last, diagonal):
    here = torch.device("cpu")
    assert cuda._agrees(here, dtype, last, diagonal)
    for name in ("gather_reference", "gather_backward_reference"):
        with monkeypatch.context() as patch:
            right = getattr(cuda, name)
            patch.setattr(cuda, name, lambda *args, right=right: spoilt(right(*args)))
            assert not cuda._agrees(here, dtype, last, diagonal)


def spoilt(right):
    return right + 1 if isinstance(right, torch.Tensor) else (right[0], right[1] + 1)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@all_kinds
@pytest.mark.parametrize("dtype", DTYPES)
def test_gpus_give_what_the_definition_says(draw, is_available, dtype, last, diagonal):
    assert is_available(0)
    for kernel in ((1, 1), (3, 3), (5, 2)):
        *tensors, source, geometry = draw(kernel, last=last, diagonal=diagonal, most=40)
        args = *(x.to("cuda:0", dtype) for x in tensors), source.cuda(), geometry
        assert_right(*args)
        assert all(map(torch.equal, found(*args), found(*args)))
