import pytest
import torch
from torch import nn

from layers import LayerForm, compress_model
from layers.blockfloat import BlockFormat, quantise
from results.portable import PortableRounding, portable_model


@pytest.fixture
def generator() -> torch.Generator:
    generator = torch.Generator()
    generator.seed()
    return generator


@pytest.mark.parametrize("bits", [2, 5, 8, 16])
@pytest.mark.parametrize("exponent_bits", [2, 3, 7])
def test_rounding_is_bit_for_bit_that_of_the_layers(generator, bits, exponent_bits):
    form = BlockFormat(bits=bits, exponent_bits=exponent_bits)
    spread = torch.randn(20_000, generator=generator) * torch.exp2(
        torch.randint(-140, 128, (20_000,), generator=generator).float()
    )
    near = torch.exp2(torch.arange(-126, 128).float())
    spread = torch.cat([spread, torch.rand(20_000, generator=generator) * 2.0 ** (2 ** (exponent_bits - 1) + 1)])
    ties = torch.arange(1, 4096).float() / 32
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45, 3.4028235e38, -3.4028235e38])
    around = [near, torch.nextafter(near, near * 2), torch.nextafter(near, torch.zeros_like(near)), -near]
    x = torch.cat([spread, *around, ties, special])
    torch.testing.assert_close(PortableRounding(form)(x), quantise(x, form), rtol=0, atol=0, equal_nan=True)


def test_rounding_takes_blocks_of_one_alone():
    with pytest.raises(ValueError, match=r"block \(=4\) must be 1"):
        PortableRounding(BlockFormat(bits=4, block=4))


FORMS = {
    "0": LayerForm(basis="cosine", harmonics=(2, 3)),
    "1": LayerForm(basis="chebyshev", harmonics=(2, 2), templates=4, groups=2, transform="scalar", bits=4),
    "2": LayerForm(bits=6, exponent_block=8),
    "5": LayerForm(bits=8),
}


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_portable_network_gives_the_same_logits(generator, mode):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False, padding_mode=mode),
        nn.Conv2d(8, 8, 3, stride=2, padding="valid" if mode == "reflect" else 1),
        nn.Conv2d(8, 8, 4, padding="same", groups=2, padding_mode=mode),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    compressed = compress_model(model, FORMS).eval()
    portable = portable_model(compressed)
    images = torch.randn(5, 3, 12, 12, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(portable(images), compressed(images), rtol=0, atol=0)
    assert not any(parameter.requires_grad for name, parameter in portable.named_parameters())
    assert {type(module).__name__ for module in compressed.modules()} > {"CompressedConv2d", "CompressedLinear"}
    assert not any(type(module).__name__.startswith("Compressed") for module in portable.modules())


@pytest.mark.parametrize("form", [LayerForm(basis="chebyshev@endpoint", harmonics=(1, 3)), LayerForm(bits=5)])
def test_1d_convolutions_too(generator, form):
    model = nn.Sequential(nn.Conv1d(3, 4, 5, padding=2, padding_mode="circular"), nn.ReLU(), nn.Flatten())
    compressed = compress_model(model, {"0": form}).eval()
    signals = torch.randn(5, 3, 12, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(portable_model(compressed)(signals), compressed(signals), rtol=0, atol=0)
