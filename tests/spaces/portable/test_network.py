from dataclasses import replace

import pytest
import torch
from torch import nn

from layers import CompressedConv2d, CompressedLinear, LayerForm, compress_model
from layers.blockfloat import BlockFormat, quantize
from spaces.portable.network import PortableRounding, portable_model


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
    torch.testing.assert_close(PortableRounding(form)(x), quantize(x, form), rtol=0, atol=0, equal_nan=True)


def wide_range(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Normal values whose channels' magnitudes lie anywhere in float32's range; a few are special."""
    spread = torch.randint(-80, 80, (shape[0], 1, *shape[2:]), generator=generator).float()
    near = torch.randint(-6, 1, shape, generator=generator).float()
    x = torch.randn(shape, generator=generator) * torch.exp2(spread + near)
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45, 3.4028235e38, -(2.0**64)])
    places = torch.randint(x.numel(), (2 * len(special),), generator=generator)
    x.view(-1)[places] = special.repeat(2)
    return x


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """NaN is NaN, and a zero's sign counts."""
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(
        one.nan_to_num().view(torch.int32), other.nan_to_num().view(torch.int32)
    )


@pytest.mark.parametrize("bits", [2, 5, 8, 16])
@pytest.mark.parametrize("block", [2, 3, 16, 128])
@pytest.mark.parametrize("exponent_bits", [3, 7])
def test_rounding_of_channels_in_blocks_is_that_of_the_layers(generator, bits, block, exponent_bits):
    form = BlockFormat(bits=bits, block=block, exponent_bits=exponent_bits, axis="channel")
    for shape in ((40, 11, 5, 3), (40, 48, 7), (300, 33)):
        x = wide_range(generator, *shape)
        ties = torch.randint(-4096, 4096, shape, generator=generator) / 32
        for values in (x, ties, torch.randn(shape, generator=generator)):
            assert same_bits(PortableRounding(form)(values), quantize(values, form))
    images = wide_range(generator, 8, 20, 4, 4).contiguous(memory_format=torch.channels_last)
    assert same_bits(PortableRounding(form)(images), quantize(images, form))


@pytest.mark.parametrize("block", [1, 3, 16])
def test_rounding_runs_elsewhere_to_the_same_bits_for_any_batch(generator, block, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    form = BlockFormat(bits=5, block=block, axis="channel")
    example = {"args": (torch.zeros(2, 20, 4, 4),), "dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},)}
    program = torch.export.export(PortableRounding(form).eval(), **example)
    torch.export.save(program, tmp_path / "rounding.pt2")
    loaded = torch.export.load(tmp_path / "rounding.pt2").module()
    torch.onnx.export(program, f=tmp_path / "rounding.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "rounding.onnx")
    (name,) = (entry.name for entry in session.get_inputs())
    for batch in (1, 9):
        x = torch.randn(batch, 20, 4, 4, generator=generator) * 100
        expected = quantize(x, form)
        assert torch.equal(loaded(x), expected)
        assert torch.equal(torch.from_numpy(session.run(None, {name: x.numpy()})[0]), expected)


def test_blocks_of_anything_but_channels_are_refused():
    with pytest.raises(ValueError, match=r"axis \(='flat'\) must be 'channel' for blocks of 4$"):
        PortableRounding(BlockFormat(bits=4, block=4))


FORMS = {
    "0": LayerForm(basis="cosine", harmonics=(2, 3)),
    "1": LayerForm(basis="chebyshev", harmonics=(2, 2), templates=4, groups=2, transform="scalar", bits=4),
    "2": LayerForm(bits=6, exponent_block=8),
    "5": LayerForm(bits=8, activation_bits=8),
}
IN_BLOCKS = {name: replace(form, activation_bits=form.bits or 7, activation_block=3) for name, form in FORMS.items()}


def close(ours, theirs):
    """Equal up to the order of additions, which a machine's libraries choose by where a tensor lies in memory."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("forms", [FORMS, IN_BLOCKS])
def test_portable_layers_give_the_same_outputs(generator, mode, forms):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False, padding_mode=mode),
        nn.Conv2d(8, 8, 3, stride=2, padding="valid" if mode == "reflect" else 1),
        nn.Conv2d(8, 8, 4, padding="same", groups=2, padding_mode=mode),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    compressed = compress_model(model, forms).eval()
    portable = portable_model(compressed)
    x = torch.randn(5, 3, 12, 12, generator=generator)
    with torch.no_grad():
        for theirs, ours in zip(portable, compressed, strict=True):
            if isinstance(ours, CompressedConv2d | CompressedLinear):
                assert torch.equal(theirs.weight, ours.filters())
                close(theirs(x), ours(x))
            x = ours(x)
        image, rows = torch.randn(3, 12, 12, generator=generator), torch.randn(2, 4, 8, generator=generator)
        close(portable[0](image), compressed[0](image))
        close(portable[5](rows), compressed[5](rows))
    assert not any(parameter.requires_grad for name, parameter in portable.named_parameters())
    assert not any(type(module).__name__.startswith("Compressed") for module in portable.modules())


@pytest.mark.parametrize(
    "form",
    [
        LayerForm(basis="chebyshev@endpoint", harmonics=(1, 3)),
        LayerForm(bits=5),
        LayerForm(bits=5, activation_bits=4, activation_block=2),
    ],
)
def test_1d_convolutions_too(generator, form):
    model = nn.Sequential(nn.Conv1d(3, 4, 5, padding=2, padding_mode="circular"), nn.ReLU(), nn.Flatten())
    compressed = compress_model(model, {"0": form}).eval()
    signals = torch.randn(5, 3, 12, generator=generator)
    with torch.no_grad():
        close(portable_model(compressed)(signals), compressed(signals))


def test_rounded_biases_and_norms_become_ordinary_ones(generator):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5), nn.LayerNorm(5))
    with torch.no_grad():
        for value in (*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.1)
    compressed = compress_model(model, {name: LayerForm(vector_bits=3) for name in ("0", "1", "3", "4")}).eval()
    portable, x = portable_model(compressed), torch.randn(2, 3, 6, 6, generator=generator)
    assert type(portable[1]) is nn.BatchNorm2d
    assert type(portable[4]) is nn.LayerNorm
    with torch.no_grad():
        close(portable(x), compressed(x))
        assert (portable(x) - model.eval()(x)).abs().max() > 0.01
