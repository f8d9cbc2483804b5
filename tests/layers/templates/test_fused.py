import ctypes
import platform
import subprocess
import tempfile
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from layers import UsageError
from layers.kernels import CSRC, cpu
from layers.templates import kernels
from layers.templates.fused import FusedTemplates, _template_conv, fused_conv2d
from layers.templates.reference import ConvGeometry

SHAPES = [  # (B, H, W): a few whole images, many of them, one of many rows, places that fill no vector
    *((3, 5, 5), (2, 32, 32), (70, 2, 2), (5, 7, 7), (1, 1, 1), (2, 9, 4), (1, 3, 50), (1, 90, 61)),
]
KERNELS = [((3, 3), (1, 1)), ((3, 3), (2, 3)), ((1, 3), (1, 2)), ((5, 3), (1, 1)), ((1, 1), (1, 1)), ((5, 5), (1, 1))]


@pytest.fixture
def draw(rng, normal):
    """What the pass reads, its filters (N, C, K_y, K_x) in float64, and the options of the convolution."""

    def make(channels=None, mixing=None, count=None):
        kernel, dilation = rng.choice(KERNELS)
        strides = [(1, 1), (1, 1), (2, 2), (3, 2), (1, 4)]
        groups, count, outputs = rng.randint(1, 2), count or rng.randint(1, 4), rng.randint(1, 23)
        depth, taps = channels or rng.choice([1, 3, 8, 33]), kernel[0] * kernel[1]
        mixing = rng.random() < 0.5 if mixing is None else mixing
        templates = normal(groups, count, depth, *kernel, dtype=torch.float32)
        operators = normal(outputs, groups, taps, *([taps] if mixing else []), dtype=torch.float32)
        operators *= torch.rand(operators.shape) < 0.7
        source = torch.tensor([rng.randrange(count) for _ in range(outputs)])
        base = templates[:, source].double().flatten(3)  # (G, N, depth, taps)
        by = operators.double().transpose(0, 1)
        filters = base @ by.mT if mixing else base * by.unsqueeze(2)
        filters = filters.transpose(0, 1).flatten(1, 2).unflatten(2, kernel)
        padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
        options = {"padding": padding, "dilation": dilation}
        options |= {} if mixing else {"stride": rng.choice(strides)}
        return FusedTemplates.from_operators(templates, operators, source), filters, options

    return make


@pytest.fixture(autouse=True)
def _compiled() -> None:
    if cpu.library("fused.c") is None:
        pytest.skip("there is no C compiler")


@pytest.fixture(params=["", "-march=x86-64", "-march=x86-64-v3"])
def vectors(request, monkeypatch):
    """The kernel for this machine's vectors, and for shorter ones, which other machines have."""
    if request.param:
        if platform.machine() != "x86_64" or (
            request.param[-1] == "3" and "avx2" not in Path("/proc/cpuinfo").read_text()
        ):
            pytest.skip(f"this processor does not run {request.param}")
        library = _for_other_vectors(request.param)
        monkeypatch.setattr(cpu, "library", lambda source, **_: library)


@cache
def _for_other_vectors(flag: str) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        command = ["cc", "-O3", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-fopenmp", flag]
        subprocess.run([*command, "-o", f"{folder}/fused.so", str(CSRC / "fused.c")], check=True)
        return ctypes.CDLL(f"{folder}/fused.so")


@pytest.mark.usefixtures("vectors")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_one_pass_is_the_convolution_with_the_rebuilt_filters(shape, threads, draw, normal, rng):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for _ in range(6):
            layer, filters, options = draw()
            x = normal(shape[0], filters.shape[1], *shape[1:], dtype=torch.float32)
            bias = normal(len(filters), dtype=torch.float32) if rng.random() < 0.5 else None
            found = fused_conv2d(x, layer, bias, **options)
            expected = F.conv2d(x.double(), filters, None if bias is None else bias.double(), **options)
            assert found.is_contiguous()
            assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    finally:
        torch.set_num_threads(before)


def test_images_of_many_channels_are_cut_into_rows(draw, normal):
    for _ in range(6):
        layer, filters, options = draw(channels=300, mixing=False)
        x = normal(1, filters.shape[1], 45, 40, dtype=torch.float32)
        expected = F.conv2d(x.double(), filters, **options)
        found = fused_conv2d(x, layer, None, **options)
        assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_what_lies_beyond_an_image_never_shows(draw, normal):
    """Not even where it is not a number."""
    layer, filters, options = draw(mixing=False)
    x = normal(3, filters.shape[1], 4, 6, dtype=torch.float32)
    expected = fused_conv2d(x, layer, None, **options)
    for spoiled in range(3):
        other = x.clone()
        other[spoiled] = torch.nan
        found = fused_conv2d(other, layer, None, **options)
        kept = [image for image in range(3) if image != spoiled]
        assert torch.equal(found[kept], expected[kept])


def test_bfloat16_is_computed_in_float32_and_rounded_once(draw, normal):
    layer, filters, options = draw()
    x = normal(4, filters.shape[1], 9, 11, dtype=torch.float32).bfloat16()
    x[0, 0, 0, 0] = torch.nan
    bias = normal(len(filters), dtype=torch.float32)
    found = fused_conv2d(x, layer, bias, **options)
    exact = fused_conv2d(x.float(), layer, bias, **options)
    assert torch.equal(found.nan_to_num(7.0), exact.bfloat16().nan_to_num(7.0))
    assert torch.equal(found.isnan(), exact.isnan())
    height, width = filters.shape[2:]
    corner = filters[:, 0, (height - 1) // 2, (width - 1) // 2]  # what the first output gives the first pixel
    assert found[0, :, 0, 0].isnan()[corner != 0].all()


@pytest.mark.usefixtures("vectors")
@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_templates_are_multiplied_as_such(shape, draw, normal, rng):
    for _ in range(6):
        layer, _, options = draw()
        templates, source = layer.templates.bfloat16(), torch.empty(len(layer.order), dtype=torch.int64)
        for template, (first, end) in enumerate(pairwise(layer.begin.tolist())):
            source[layer.order[first:end]] = template
        half = FusedTemplates.from_operators(templates, layer.operators, source)
        x = normal(shape[0], templates.shape[0] * templates.shape[2], *shape[1:], dtype=torch.float32).bfloat16()
        bias = normal(len(layer.order), dtype=torch.float32) if rng.random() < 0.5 else None
        found = fused_conv2d(x, half, bias, **options)
        expected = fused_conv2d(x.float(), half, bias, **options)
        assert found.dtype == torch.bfloat16
        assert torch.allclose(found.float(), expected, rtol=2**-7, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_a_sound_operator(dtype, draw, normal):
    layer, filters, options = draw()
    x = normal(2, filters.shape[1], 8, 6, dtype=torch.float32).to(dtype)
    args = (x, *layer, None, *(list(options.get(name, (1, 1))) for name in ("stride", "padding", "dilation")))
    torch.library.opcheck(torch.ops.overtone.template_conv.default, args)


def test_strided_inputs_and_empty_batches(draw, normal):
    layer, filters, options = draw()
    x = normal(4, filters.shape[1], 8, 6, dtype=torch.float32)
    expected = fused_conv2d(x, layer, None, **options)
    assert torch.equal(fused_conv2d(x.contiguous(memory_format=torch.channels_last), layer, None, **options), expected)
    assert torch.equal(fused_conv2d(torch.stack([x, x], -1)[..., 0], layer, None, **options), expected)
    assert fused_conv2d(x[:0], layer, None, **options).shape == (0, *expected.shape[1:])


def test_there_is_none_for_gradients_other_types_and_strides(draw, normal):
    layer, filters, options = draw()
    x = normal(2, filters.shape[1], 8, 6, dtype=torch.float32)
    assert fused_conv2d(x.requires_grad_(), layer, None, **options) is None
    with torch.no_grad():
        assert fused_conv2d(x, layer, None, **options) is not None
    x = x.detach()
    assert fused_conv2d(x.double(), layer, None, **options) is None
    assert fused_conv2d(x, layer, None, **options | {"padding": (7, 7)}) is None
    geometry = ConvGeometry(tuple(layer.templates.shape[3:]), (2, 1), options["padding"], options["dilation"])
    assert kernels.can_convolve(x, geometry, mixes=False)
    assert not kernels.can_convolve(x, geometry, mixes=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x": torch.zeros(1, 4, 5, 5).double()},
            r"x \(=torch.float64 on cpu\) must be float32 or bfloat16",
        ),
        ({"x": torch.zeros(1, 3, 5, 5)}, r"x \(=\(1, 3, 5, 5\)\) must be \(B, 4, H, W\)$"),
        ({"x": torch.zeros(4, 5, 5)}, r"must be \(B, 4, H, W\)$"),
        ({"padding": [0, 1]}, r"with outputs amid their taps, of stride 1"),
        ({"stride": [1, 2], "operators": torch.zeros(3, 2, 9, 9)}, r"of stride 1 if operators mix taps$"),
        ({"operators": torch.zeros(3, 1, 9)}, r"operators \(=\(3, 1, 9\)\) must be \(N, 2, 9\) or with 9 twice$"),
        ({"operators": torch.zeros(3, 2, 9).double()}, r"must be contiguous float32 tensors$"),
        ({"templates": torch.zeros(2, 2, 2, 3, 3).mT}, r"must be contiguous float32 tensors$"),
        ({"pairs": torch.zeros(2, 2, 2, 9).int()}, r"pairs \(=torch.int32 \(2, 2, 2, 9\)\) must be contiguous int32 "),
        ({"pairs": torch.zeros(2, 2, 1, 9)}, r"must be contiguous int32 \(2, 2, 1, 9\)$"),
        ({"bias": torch.zeros(4)}, r"bias \(=\(4,\)\) must be \(3,\)$"),
        ({"order": torch.zeros(4, dtype=torch.int64)}, r"order and begin must be int64 \(3,\) and \(3,\)$"),
        ({"begin": torch.tensor([0, 2, 3]).int()}, r"order and begin must be int64"),
        ({"order": torch.tensor([0, 1, 3])}, r"order and begin must give 3 outputs to 2 templates$"),
        ({"begin": torch.tensor([0, 4, 3])}, r"must give 3 outputs"),
        ({"begin": torch.tensor([1, 2, 3])}, r"must give 3 outputs"),
    ],
)
def test_other_arguments_are_refused_in_a_sentence(change, message):
    args = {
        "x": torch.zeros(1, 4, 5, 5),
        "templates": torch.zeros(2, 2, 2, 3, 3),
        "pairs": None,
        "operators": torch.zeros(3, 2, 9),
        "order": torch.arange(3),
        "begin": torch.tensor([0, 2, 3]),
        "bias": None,
        "stride": [1, 1],
        "padding": [1, 1],
        "dilation": [1, 1],
    }
    _template_conv(**args)
    with pytest.raises(UsageError, match=message):
        _template_conv(**args | change)
