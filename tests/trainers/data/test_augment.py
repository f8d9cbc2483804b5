import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from layers.errors import UsageError
from trainers.data import augment as module
from trainers.data.augment import augment, normalize


def batch(n: int, channels: int, side: int, seed: int = 0, dtype=torch.uint8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (n, channels, side, side), generator=generator).to(dtype)


@pytest.mark.parametrize(("n", "channels", "side", "pad"), [(9, 3, 32, 4), (5, 1, 8, 1), (1, 3, 7, 3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_batched_crop_equals_cropping_one_by_one(n, channels, side, pad, layout):
    images = batch(n, channels, side).contiguous(memory_format=layout)
    offsets = torch.randint(2 * pad + 1, (2, n), generator=torch.Generator().manual_seed(1))
    cropped = module._crop(images, pad, offsets)
    for image, found, top, left in zip(images, cropped, *offsets.tolist(), strict=True):
        padded = torch.zeros(channels, side + 2 * pad, side + 2 * pad, dtype=images.dtype)
        padded[:, pad : pad + side, pad : pad + side] = image
        assert torch.equal(found, padded[:, top : top + side, left : left + side])


def marks(n: int, side: int) -> torch.Tensor:
    """Images with one lit pixel, off center, so that every move and mirror shows."""
    images = torch.zeros(n, 1, side, side, dtype=torch.uint8)
    images[:, :, side // 2, side // 2 + 1] = 255
    return images


def lit(images: torch.Tensor) -> torch.Tensor:
    """Row and column (n, 2) of the lit pixel of each image."""
    return (
        images.flatten(1).argmax(1).unsqueeze(1).div(torch.tensor([images.shape[-1], 1]), rounding_mode="floor")
        % (images.shape[-1])
    )


@pytest.mark.parametrize(("side", "pad"), [(8, 1), (32, 4)])
def test_offsets_are_uniform_and_of_two_independent_axes(side, pad):
    n, wide = 40_000, 2 * pad + 1
    moved = lit(augment(marks(n, side), "shift", torch.Generator().manual_seed(0)))
    moves = moved - torch.tensor([side // 2, side // 2 + 1]) + pad
    assert moves.min() == 0
    assert moves.max() == wide - 1
    counts = (moves[:, 0] * wide + moves[:, 1]).bincount(minlength=wide**2)
    expected = n / wide**2
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < wide**2 - 1 + 5 * (2 * (wide**2 - 1)) ** 0.5  # five standard deviations


def test_images_of_a_batch_move_independently():
    wide = 3
    generator = torch.Generator().manual_seed(0)
    pairs = torch.stack([lit(augment(marks(2, 8), "shift", generator))[:, 0] for _ in range(4000)]) - 3
    counts = (pairs[:, 0] * wide + pairs[:, 1]).bincount(minlength=9)
    assert (counts - 4000 / 9).abs().max() < 5 * (4000 / 9) ** 0.5


def test_half_of_the_images_are_mirrored_whatever_their_shift():
    images = torch.zeros(20_000, 1, 32, 32, dtype=torch.uint8)
    images[:, :, 16, 10], images[:, :, 16, 11] = 255, 128  # the brighter one is on the left, unless mirrored
    moved = augment(images, "crop-flip", torch.Generator().manual_seed(0))
    bright, dim = lit(moved)[:, 1], lit(torch.where(moved == 128, moved, 0))[:, 1]
    mirrored = bright > dim
    assert abs(int(mirrored.sum()) - 10_000) < 5 * 70.7
    shifts = torch.where(mirrored, 31 - bright, bright) - 10 + 4
    for shift in range(9):
        n = int((shifts == shift).sum())
        assert abs(int((mirrored & (shifts == shift)).sum()) - n / 2) < 5 * (n / 4) ** 0.5


def test_a_shift_never_mirrors():
    images = torch.zeros(1000, 1, 8, 8, dtype=torch.uint8)
    images[:, :, 4, 2], images[:, :, 4, 5] = 255, 128
    moved = augment(images, "shift", torch.Generator().manual_seed(0))
    assert (lit(torch.where(moved == 128, moved, 0))[:, 1] - lit(moved)[:, 1] == 3).all()


def test_the_outcomes_are_those_of_torchvision():
    """Every image that torchvision's crop and mirror can make of one image is made, and no other."""
    image = batch(1, 3, 8)
    usual = transforms.Compose([transforms.RandomCrop(8, padding=1), transforms.RandomHorizontalFlip()])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = {usual(image[0]).numpy().tobytes() for _ in range(600)}
    found = augment(image.expand(600, -1, -1, -1), "crop-flip", torch.Generator().manual_seed(0))
    assert len(expected) == 18
    assert {x.contiguous().numpy().tobytes() for x in found} == expected


def test_none_changes_nothing_and_draws_nothing():
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    images = batch(4, 3, 8)
    assert augment(images, "none", generator) is images
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize("kind", ["none", "shift", "crop-flip"])
def test_floats_and_bytes_take_the_same_draws(kind, generator):
    images = torch.randint(256, (16, 3, 8, 8), generator=generator, dtype=torch.uint8)
    moved, floats = (augment(x, kind, torch.Generator().manual_seed(3)) for x in (images, images.float()))
    assert torch.equal(moved.float(), floats)


@pytest.mark.parametrize("kind", ["shift", "crop-flip"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_generator_alone_decides_and_the_input_stays(kind, dtype):
    images = batch(16, 3, 16, dtype=dtype)
    before = images.clone()
    state = torch.get_rng_state()
    one, same, other = (augment(images, kind, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.dtype == dtype
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_unknown_kind_is_answered_with_the_allowed_ones():
    with pytest.raises(UsageError, match=r"augment \(='rotate'\) must be one of none, shift, crop-flip"):
        augment(batch(1, 1, 8), "rotate", torch.Generator())


@pytest.mark.parametrize(("mean", "std"), [((0.3,), (0.4,)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
def test_normalisation_is_torchvisions(mean, std):
    images = batch(3, len(mean), 12)
    usual = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    pixels = [np.ascontiguousarray(x.permute(1, 2, 0).squeeze(-1).numpy()) for x in images]
    expected = torch.stack([usual(Image.fromarray(x)) for x in pixels])
    found = normalize(images, mean, std)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_bytes_are_normalized_bit_by_bit_as_scaled_by_255(generator, channels, layout):
    mean, std = torch.rand(2, channels, generator=generator, dtype=torch.float64).add(0.1).tolist()
    images = torch.randint(256, (5, channels, 6, 7), generator=generator, dtype=torch.uint8)
    found = normalize(images.contiguous(memory_format=layout), tuple(mean), tuple(std))
    for c in range(channels):
        scale, shift = torch.tensor(1 / (255 * std[c])), torch.tensor(mean[c] / std[c])
        assert torch.equal(found[:, c], images[:, c].float() * scale - shift)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_floats_are_normalized_without_a_scale_and_stay(generator, channels, layout):
    mean, std = torch.rand(2, channels, generator=generator, dtype=torch.float64).add(0.1).tolist()
    images = torch.randn(5, channels, 6, 7, generator=generator).contiguous(memory_format=layout)
    before = images.clone()
    found = normalize(images, tuple(mean), tuple(std))
    expected = (images.double() - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)
    found.zero_()
    assert torch.equal(images, before)


@pytest.mark.parametrize("side", [7, 8])
def test_a_rotation_of_floats_by_quarters_moves_pixels(generator, side):
    images = torch.randn(4, 3, side, side, generator=generator)
    before = images.clone()
    turned = module._rotate(images, torch.tensor([0.0, 90.0, 180.0, -90.0]))
    assert turned.dtype == torch.float32
    for image, found, quarters in zip(images, turned, (0, 1, 2, -1), strict=True):
        torch.testing.assert_close(found, image.rot90(quarters, (1, 2)), rtol=0, atol=1e-4)
    assert torch.equal(images, before)


def test_a_rotation_of_bytes_is_that_of_floats_rounded(generator):
    images = torch.randint(256, (6, 3, 9, 11), generator=generator, dtype=torch.uint8)
    degrees = 40 * torch.rand(6, generator=generator) - 20
    assert torch.equal(module._rotate(images, degrees), module._rotate(images.float(), degrees).round().byte())


def test_a_linear_ramp_of_floats_turns_exactly(generator):
    """Bilinear interpolation is exact on a ramp, wherever no pixel beyond the edge counts."""
    side = 15
    y, x = torch.meshgrid(*[torch.arange(side).double() - (side - 1) / 2] * 2, indexing="ij")
    a, b, c = torch.randn(3, generator=generator, dtype=torch.float64).tolist()
    degrees = 90 * torch.rand(5, generator=generator) - 45
    found = module._rotate((a * x + b * y + c).float().expand(5, 1, side, side), degrees)
    inside = x.square() + y.square() < ((side - 1) / 2) ** 2
    for turned, angle in zip(found[:, 0], degrees.double().deg2rad(), strict=True):
        cos, sin = angle.cos(), angle.sin()
        expected = a * (cos * x - sin * y) + b * (sin * x + cos * y) + c
        torch.testing.assert_close(turned[inside], expected[inside].float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 3, 32, 32), (4, 1, 8, 12), (4, 3, 9, 7)])
def test_a_batched_rotation_is_torchvisions(shape):
    images = torch.randint(256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    degrees = [-33.0, 0.0, 4.0, 90.0]
    found = module._rotate(images, torch.tensor(degrees))
    for image, turned, angle in zip(images, found, degrees, strict=True):
        expected = transforms.functional.rotate(image, angle, transforms.InterpolationMode.BILINEAR)
        away = (turned.int() - expected.int()).abs()
        assert away.max() <= 1  # a half is rounded either way
        assert (away > 0).float().mean() < 0.01
    assert torch.equal(found[1], images[1])


def test_angles_are_uniform_either_way(monkeypatch):
    drawn = []
    monkeypatch.setattr(module, "_rotate", lambda images, degrees: drawn.append(degrees) or images)
    augment(torch.zeros(20_000, 1, 1, 1, dtype=torch.uint8), "none", torch.Generator().manual_seed(0), rotation=20.0)
    counts = torch.histc(drawn[0], 10, -20, 20)
    assert counts.sum() == 20_000
    assert ((counts - 2000) ** 2 / 2000).sum() < 9 + 5 * 18**0.5  # chi-square, five standard deviations
