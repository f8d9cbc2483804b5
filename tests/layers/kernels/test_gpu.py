"""CUDA kernels without a GPU: compiled for every architecture, and run from their own source on the CPU."""

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from layers.blockfloat import BlockFormat
from layers.blockfloat.format import AXES
from layers.blockfloat.kernels import cuda_launch
from layers.blockfloat.reference import round_reference
from layers.kernels import CSRC, gpu
from tests.layers.assembled import assert_in_registers
from tests.layers.blockfloat.patterns import BIT_PATTERNS, any_pattern, same_bits

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
MARGIN = 64


@pytest.mark.skipif(not gpu.installed(), reason="the package cuda-core is not installed")
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("macros", [(), ("WIDE",), ("BFLOAT16",), ("BFLOAT16", "WIDE")])
def test_kernels_compile_without_warnings_and_keep_everything_in_registers(arch, macros):
    assert_in_registers("blockfloat.cu", arch, macros, ["many_blocks", "rows_of_blocks", "single_values"])


@pytest.fixture(scope="module", params=itertools.product([(), ("WIDE",)], BIT_PATTERNS), ids=str)
def on_cpu(request, tmp_path_factory):
    """The kernels' source as a library for the CPU, its type of whole numbers, and that of the values."""
    wide, dtype = request.param
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    source = Path(__file__).parents[1] / "csrc" / "blockfloat_on_cpu.cpp"
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-Wall", "-Werror", "-Wno-unused-function"]
    flags += [f"-D{macro}" for macro in (*wide, *(["BFLOAT16"] if dtype == torch.bfloat16 else []))]
    command = ["c++", *flags, "-x", "c++", f"-I{CSRC}", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library)), ctypes.c_longlong if wide else ctypes.c_int, dtype


def run(on_cpu, x, form, grid):
    """What the kernel writes between two margins that it must not touch."""
    library, index, dtype = on_cpu
    memory = torch.full((x.numel() + 2 * MARGIN,), 7.0, dtype=dtype)
    y = memory[MARGIN : MARGIN + x.numel()].view(x.shape)
    name, numbers, _ = cuda_launch(x.shape, form)
    pointers = (ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()))
    getattr(library, f"run_{name}")(ctypes.c_uint(grid), *pointers, *map(index, numbers))
    assert memory[:MARGIN].eq(7).all()
    assert memory[-MARGIN:].eq(7).all()
    return y


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("block", [1, 2, 3, 4, 16, 31, 64, 100, 128])
def test_kernels_give_plain_pytorchs_bits(on_cpu, axis, block, rng, generator):
    for _ in range(2):
        form = BlockFormat(bits=rng.randint(1, 16), block=block, exponent_bits=rng.randint(2, 7), axis=axis)
        shape = (rng.randint(1, 4), rng.randint(1, 140), *rng.choice([(), (3, 3), (1, 1), (5, 2)]))
        x = any_pattern(generator, *shape).to(on_cpu[-1])
        found = run(on_cpu, x, form, grid=rng.randint(1, 3))
        assert same_bits(found, round_reference(x, form)), (form, shape)


@pytest.mark.parametrize(
    ("shape", "form", "expected"),
    [
        ((3, 5), BlockFormat(bits=4), ("single_values", (15, 4, -64), 4)),
        ((3, 5), BlockFormat(bits=4, block=16), ("rows_of_blocks", (1, 15, 16, 4, 4, -64), 4)),
        ((3, 40), BlockFormat(bits=4, block=128, axis="filter"), ("rows_of_blocks", (3, 40, 128, 32, 4, -64), 96)),
        ((3, 9), BlockFormat(bits=4, block=5, axis="filter"), ("rows_of_blocks", (3, 9, 5, 2, 4, -64), 12)),
        ((3, 9, 2), BlockFormat(bits=4, block=5, axis="channel"), ("many_blocks", (3, 9, 2, 5, 4, -64), 12)),
    ],
)
def test_threads_are_as_many_as_the_values_need(shape, form, expected):
    assert cuda_launch(shape, form) == expected


def test_without_the_package_gpus_round_in_plain_pytorch(monkeypatch):
    from layers.blockfloat import kernels

    monkeypatch.setattr(gpu, "installed", lambda: False)
    kernels.is_available.cache_clear()
    assert not kernels.is_available(0)
    kernels.is_available.cache_clear()
