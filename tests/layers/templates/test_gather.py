import random

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from layers import UsageError
from layers.kernels import cpu
from layers.templates import gather as module
from layers.templates.gather import template_gather
from layers.templates.reference import ConvGeometry

OPS = torch.ops.overtone
LAYOUTS = (torch.contiguous_format, torch.channels_last)
KERNELS = ((3, 3), (1, 1), (1, 3), (5, 2))


def random_geometry(rng: random.Random) -> ConvGeometry:
    pairs = [(rng.randint(*ends), rng.randint(*ends)) for ends in ((1, 3), (0, 2), (1, 2))]
    return ConvGeometry(rng.choice(KERNELS), *pairs)


def sides(geometry: ConvGeometry, rng: random.Random) -> list[int]:
    """Of an input on which the kernel can lie, its padding included."""
    reach = [
        d * (k - 1) + 1 - 2 * p for k, d, p in zip(geometry.kernel, geometry.dilation, geometry.padding, strict=True)
    ]
    return [max(1, least) + rng.choice([0, 1, 5]) for least in reach]


@pytest.fixture
def draw(rng, normal):
    """Maps, operators, sources and geometry, from templates (G, M, C, K_y, K_x) and x (B, G C, H, W): these too."""

    def make(*, mixing: bool, geometry: ConvGeometry | None = None, dtype: torch.dtype = torch.float64):
        geometry = geometry or random_geometry(rng)
        groups, count, channels, outputs = (rng.randint(1, 3) for _ in range(4))
        taps = geometry.kernel[0] * geometry.kernel[1]
        x = normal(rng.randint(1, 3), groups * channels, *sides(geometry, rng))
        templates = normal(groups, count, channels, *geometry.kernel)
        operators = normal(outputs, groups, taps, *([taps] if mixing else []))
        source = torch.tensor([rng.randrange(count) for _ in range(outputs)])
        maps = F.conv2d(x, templates.permute(0, 3, 4, 1, 2).reshape(-1, channels, 1, 1), groups=groups)
        return (maps.to(dtype), operators.to(dtype), source), geometry, (x, templates)

    return make


def rebuilt(templates: Tensor, operators: Tensor, source: Tensor) -> Tensor:
    """The filters (N, G C, K_y, K_x) that the gather stands for."""
    parts = []
    for group in range(len(templates)):
        base = templates[group, source].flatten(2)
        if operators.dim() == 3:
            parts.append(base * operators[:, group, None])
        else:
            parts.append(torch.einsum("nck,nlk->ncl", base, operators[:, group]))
    return torch.cat(parts, 1).unflatten(2, templates.shape[3:])


@pytest.mark.parametrize("_", range(15))
@pytest.mark.parametrize("mixing", [False, True])
def test_maps_gathered_are_the_convolution_with_the_rebuilt_filters(_, mixing, draw):
    tensors, geometry, (x, templates) = draw(mixing=mixing)
    filters = rebuilt(templates, *tensors[1:])
    expected = F.conv2d(x, filters, stride=geometry.stride, padding=geometry.padding, dilation=geometry.dilation)
    for layout in LAYOUTS:
        maps = tensors[0].contiguous(memory_format=layout)
        found = template_gather(maps, *tensors[1:], *pairs(geometry))
        assert found.is_contiguous(memory_format=layout) or maps.is_contiguous()  # as a single map is in both
        assert torch.allclose(found, expected, atol=1e-10)


def pairs(geometry: ConvGeometry) -> list[list[int]]:
    return [list(geometry.kernel), list(geometry.stride), list(geometry.padding), list(geometry.dilation)]


@pytest.mark.parametrize("mixing", [False, True])
def test_gradients(mixing, draw, rng):
    geometry = ConvGeometry(
        rng.choice(KERNELS[:3]), (rng.randint(1, 2), 1), (1, rng.randint(0, 1)), (1, rng.randint(1, 2))
    )
    (maps, operators, source), _, _ = draw(mixing=mixing, geometry=geometry)
    maps, operators = maps[:1].clone().requires_grad_(), operators.requires_grad_()
    assert torch.autograd.gradcheck(lambda z, s: template_gather(z, s, source, *pairs(geometry)), (maps, operators))


@pytest.mark.parametrize("_", range(15))
@pytest.mark.parametrize("mixing", [False, True])
def test_the_kernel_in_c_gives_what_plain_pytorch_does(_, mixing, draw, normal, monkeypatch):
    if cpu.library("gather.c") is None:
        pytest.skip("there is no C compiler")
    (maps, operators, source), geometry, _ = draw(mixing=mixing, dtype=torch.float32)
    source = source.clone()
    source[0] = maps.shape[1]  # a template that does not exist
    operators[-1].flatten()[0] = 0.0
    args = (maps, operators, source, *pairs(geometry))
    found = template_gather(*args)
    grad = normal(*found.shape, dtype=torch.float32)
    backward = OPS.template_gather_backward(grad, *args)
    assert not found[:, 0].any()
    monkeypatch.setattr(cpu, "library", lambda source, **_: None)
    assert torch.allclose(found, template_gather(*args), rtol=1e-4, atol=1e-4)
    for one, other in zip(backward, OPS.template_gather_backward(grad, *args), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_added_up_in_float32(dtype, draw):
    (maps, operators, source), geometry, _ = draw(mixing=False, dtype=dtype)
    found = template_gather(maps, operators, source, *pairs(geometry))
    exact = template_gather(maps.float(), operators.float(), source, *pairs(geometry))
    assert torch.equal(found, exact.to(dtype))


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_a_sound_operator(mixing, layout, draw):
    geometry = ConvGeometry((3, 2), (2, 1), (1, 0), (1, 1))
    (maps, operators, source), _, _ = draw(mixing=mixing, geometry=geometry, dtype=torch.float32)
    maps = maps.contiguous(memory_format=layout)
    grad = torch.randn_like(template_gather(maps, operators, source, *pairs(geometry)))
    torch.library.opcheck(
        OPS.template_gather.default, (maps.requires_grad_(), operators.requires_grad_(), source, *pairs(geometry))
    )
    args = (maps.detach(), operators.detach(), source, *pairs(geometry))
    torch.library.opcheck(OPS.template_gather_backward.default, (grad, *args))


def test_strided_and_single_maps_and_empty_batches(draw, normal):
    geometry = ConvGeometry((1, 3), (1, 1), (0, 1), (1, 1))
    (maps, operators, source), _, _ = draw(mixing=False, geometry=geometry, dtype=torch.float32)
    wide = torch.stack([maps, maps], -1)
    expected = template_gather(maps, operators, source, *pairs(geometry))
    assert torch.equal(template_gather(wide[..., 0], operators, source, *pairs(geometry)), expected)
    assert torch.allclose(template_gather(maps[:1], operators, source, *pairs(geometry)), expected[:1], atol=1e-5)
    empty = maps[:0].requires_grad_()
    found = template_gather(empty, operators.requires_grad_(), source, *pairs(geometry))
    assert found.shape == (0, *expected.shape[1:])
    found.sum().backward()
    assert not operators.grad.any()


def test_compiled_without_a_break(draw):
    geometry = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1))
    (maps, operators, source), _, _ = draw(mixing=False, geometry=geometry, dtype=torch.float32)

    def call(maps: Tensor, operators: Tensor) -> Tensor:
        return template_gather(maps.relu(), operators * 2, source, *pairs(geometry)).sum()

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    leaves = [[t.clone().requires_grad_() for t in (maps, operators)] for _ in "ab"]
    for function, (z, s) in zip((call, compiled), leaves, strict=True):
        function(z, s).backward()
    for one, other in zip(*leaves, strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": torch.zeros(2, 18, 5)}, r"maps \(=torch.float32 \(2, 18, 5\) on cpu\) must be \(B, G T M, H, W\)"),
        ({"maps": torch.zeros(2, 18, 5, 5, dtype=torch.int64)}, r"maps \(=torch.int64 .*\) must be"),
        ({"maps": torch.zeros(2, 20, 5, 5)}, r"must have a multiple of 1 groups x 9 taps of channels$"),
        ({"maps": torch.zeros(2, 18, 1, 5)}, r"must be at least as large as the kernel"),
        ({"operators": torch.zeros(4, 9)}, r"operators \(=.*\) must be \(N, G, 9\) or \(N, G, 9, 9\)$"),
        ({"operators": torch.zeros(4, 1, 9, 8)}, r"operators \(=.*\) must be \(N, G, 9\)"),
        ({"operators": torch.zeros(4, 0, 9)}, r"must have a multiple of 0 groups"),
        ({"operators": torch.zeros(4, 1, 9).double()}, r"operators \(=torch.float64 .*\) must be torch.float32 on cpu"),
        ({"operators": torch.zeros(4, 1, 9, device="meta")}, r"must be torch.float32 on cpu like the maps$"),
        ({"source": torch.zeros(3, dtype=torch.int64)}, r"source \(=.*\) must be int64 \(4,\) on cpu$"),
        ({"source": torch.zeros(4, dtype=torch.int32)}, r"source \(=torch.int32 .*\) must be int64"),
        ({"kernel": [3]}, r"kernel \(=\[3\]\) must be two whole numbers, 1 or more$"),
        ({"stride": [1, 0]}, r"stride \(=\[1, 0\]\) must be"),
        ({"padding": [0, -1]}, r"padding \(=\[0, -1\]\) must be two whole numbers, 0 or more$"),
        ({"dilation": [0, 1]}, r"dilation \(=\[0, 1\]\) must be"),
    ],
)
def test_other_arguments_are_refused_in_a_sentence(change, message):
    args = {
        "maps": torch.zeros(2, 18, 5, 5),
        "operators": torch.zeros(4, 1, 9),
        "source": torch.zeros(4, dtype=torch.int64),
        "kernel": [3, 3],
        "stride": [1, 1],
        "padding": [0, 0],
        "dilation": [1, 1],
    }
    template_gather(**args)
    with pytest.raises(UsageError, match=message):
        template_gather(**args | change)


def test_gradients_of_another_shape_are_refused():
    args = (torch.zeros(2, 9, 5, 5), torch.zeros(4, 1, 9), torch.zeros(4, dtype=torch.int64))
    geometry = pairs(ConvGeometry((3, 3), (1, 1), (0, 0), (1, 1)))
    for grad in (torch.zeros(2, 4, 5, 5), torch.zeros(2, 4, 3, 3).double()):
        with pytest.raises(UsageError, match=r"grad \(=.*\) must be torch.float32 \(2, 4, 3, 3\) on cpu$"):
            module._backward(grad, *args, *geometry)
