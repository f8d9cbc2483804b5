"""Fresh random numbers, small layers and slow oracles for the tests of layers."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from layers import LayerForm
from layers.blockfloat.format import AXES
from layers.kernels import cpu
from layers.templates.transforms import TRANSFORMS

ConvMaker = Callable[..., nn.Conv2d]


@pytest.fixture
def normal(generator: torch.Generator) -> Callable[..., Tensor]:
    """Standard normal tensors, float64 unless said otherwise."""

    def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return draw


@pytest.fixture
def fill(generator: torch.Generator) -> Callable[[nn.Module], nn.Module]:
    """Give a module random weights, and its norms random statistics."""

    def filled(module: nn.Module) -> nn.Module:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(generator=generator)
            for name, buffer in module.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    buffer.uniform_(0.5, 2.0, generator=generator)
        return module

    return filled


@pytest.fixture
def conv_options(rng: random.Random) -> Callable[[], dict[str, Any]]:
    """Arguments of a random convolution: 1-D and even kernels, strides, padding, dilation, groups, depthwise."""

    def draw() -> dict[str, Any]:
        groups, per_group = rng.choice([(1, 6), (1, 4), (2, 3), (3, 2), (6, 1)])
        return {
            "in_channels": groups * per_group,
            "out_channels": groups * rng.randint(1, 4),
            "kernel_size": rng.choice([(1, 1), (3, 3), (2, 2), (1, 5), (4, 1), (4, 3), (3, 2), (5, 5), (7, 7)]),
            "stride": (rng.randint(1, 3), rng.randint(1, 3)),
            "padding": (rng.randint(0, 3), rng.randint(0, 3)),
            "dilation": (rng.randint(1, 2), rng.randint(1, 2)),
            "groups": groups,
            "bias": rng.random() < 0.5,
        }

    return draw


@pytest.fixture
def random_conv(fill: Callable[[nn.Module], nn.Module], conv_options: Callable[[], dict[str, Any]]) -> ConvMaker:
    """Random convolutions, float64 unless said otherwise.

    Of other types they are padded along x by no more than the kernel reaches: past that PyTorch's own convolutions,
    ours or not, can end the process (https://github.com/uxlfoundation/oneDNN/issues/5942).
    """

    def draw(*, dtype: torch.dtype = torch.float64, **fixed: Any) -> nn.Conv2d:
        options = conv_options()
        if dtype != torch.float64 and "padding" not in fixed:
            above, beside = options["padding"]
            (_, taps), (_, step) = ((options | fixed)[name] for name in ("kernel_size", "dilation"))
            options["padding"] = (above, min(beside, step * (taps - 1)))
        conv = fill(nn.Conv2d(**{**options, **fixed}, dtype=dtype))
        assert isinstance(conv, nn.Conv2d)
        return conv

    return draw


@pytest.fixture
def images(rng: random.Random, normal: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The smallest image that the convolution takes, or a few pixels more."""

    def draw(conv: nn.Conv2d, batch: int = 2) -> Tensor:
        padding = (0, 0) if isinstance(conv.padding, str) else conv.padding
        least = [max(1, conv.dilation[i] * (conv.kernel_size[i] - 1) + 1 - 2 * padding[i]) for i in (0, 1)]
        height, width = (size + rng.choice([0, 0, 1, 5]) for size in least)
        return normal(batch, conv.in_channels, height, width, dtype=conv.weight.dtype)

    return draw


@pytest.fixture
def random_form(rng: random.Random) -> Callable[..., LayerForm]:
    """A random legal form of a convolution, any of its steps left out at random."""

    def draw(conv: nn.Conv2d) -> LayerForm:
        chosen: dict[str, Any] = {}
        if rng.random() < 0.6:
            chosen |= {"basis": rng.choice(["cosine", "chebyshev"])}
            chosen |= {"harmonics": tuple(rng.randint(1, k) for k in conv.kernel_size)}
        if chosen and rng.random() < 0.4:
            chosen |= {"allocation": "filter"}
        elif rng.random() < 0.6:
            channels = conv.in_channels // conv.groups
            divisors = [g for g in range(1, channels + 1) if channels % g == 0]
            chosen |= {"templates": rng.randint(1, conv.out_channels), "transform": rng.choice(TRANSFORMS)}
            chosen |= {"groups": rng.choice(divisors)}
            if chosen["templates"] > 1 and chosen["transform"] != "zero" and rng.random() < 0.6:
                chosen |= {"assignment": "residual"}
        if rng.random() < 0.6:
            chosen |= {"bits": rng.randint(1, 16), "exponent_block": rng.choice([1, 2, 5, 16, 128])}
            chosen |= {"exponent_bits": rng.randint(6, 7)}  # least-squares gains have a heavy tail
            chosen |= {"exponent_axis": rng.choice(AXES)}
        elif rng.random() < 0.4:
            chosen |= {"bits": rng.randint(2, 7), "scale": "bfloat16"}
        if rng.random() < 0.5:
            chosen |= {"activation_bits": rng.randint(1, 16), "activation_block": rng.choice([1, 1, 2, 5, 16])}
        return LayerForm(**chosen)

    return draw


@pytest.fixture
def count_macs() -> Callable[..., int]:
    """Multiply-accumulates that PyTorch's own counter sees in a call, for one image."""

    def count(call: Callable[..., Any], *args: Any, images: int = 1) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            call(*args)
        total = counter.get_total_flops()
        assert total % (2 * images) == 0
        return int(total // (2 * images))

    return count


@pytest.fixture
def without_compiler(monkeypatch):
    """A process that finds no C compiler."""
    cpu.library.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    yield
    cpu.library.cache_clear()
