import io

import numpy as np
import pytest
import torch
from PIL import Image

from trainers.data.decode import decode_all, decode_one


def encode(pixels: np.ndarray, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def random_pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("form", ["png", "bmp", "tiff", "webp"])
def test_lossless_colour_comes_back_exactly(form):
    pixels = random_pixels(0, 9, 7, 3)
    encoded = encode(pixels, form) if form != "webp" else _lossless_webp(pixels)
    assert torch.equal(decode_one(encoded), torch.from_numpy(pixels).permute(2, 0, 1))


def _lossless_webp(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "webp", lossless=True)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(32, 32, 3), (17, 40, 3), (28, 28)])
def test_jpeg_gives_pillows_pixels(shape):
    encoded = encode(random_pixels(1, *shape), "jpeg")
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    assert torch.equal(decode_one(encoded), torch.from_numpy(expected.copy()).permute(2, 0, 1))


def test_grey_becomes_three_equal_planes():
    pixels = random_pixels(2, 5, 6)
    assert torch.equal(decode_one(encode(pixels, "png")), torch.from_numpy(pixels).expand(3, 5, 6))


def test_of_sixteen_bits_the_upper_eight_count():
    ramp = np.arange(0, 65536, 37, dtype=np.uint16).reshape(4, -1)
    expected = torch.from_numpy((ramp >> 8).astype(np.uint8)).expand(3, *ramp.shape)
    for form in ("png", "tiff"):
        assert torch.equal(decode_one(encode(ramp, form)), expected)


@pytest.mark.parametrize("pixels", [np.random.default_rng(0).random((4, 5), np.float32), np.full((4, 5), 9, np.int32)])
def test_values_of_no_known_range_are_no_image(pixels):
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_one(encode(pixels, "tiff"))


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_a_truncated_image_is_no_image(keep):
    encoded = encode(random_pixels(3, 32, 32, 3), "jpeg")
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_one(encoded[: int(len(encoded) * keep)])


def test_no_bytes_and_foreign_bytes_are_told_apart():
    with pytest.raises(ValueError, match="is empty"):
        decode_one(b"")
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_one(b"not an image at all")


def test_all_indices_are_filled_and_the_others_left():
    pixels = random_pixels(4, 200, 6, 6, 3)
    encoded = [encode(image, "png") for image in pixels]
    wanted = list(range(0, 200, 2))
    out = torch.full((200, 3, 6, 6), 77, dtype=torch.uint8)
    assert decode_all(out, wanted, encoded.__getitem__) == {}
    assert torch.equal(out[::2], torch.from_numpy(pixels).permute(0, 3, 1, 2)[::2])
    assert (out[1::2] == 77).all()


def test_each_fault_is_reported_by_its_number():
    encoded = [encode(random_pixels(i, 6, 6, 3), "png") for i in range(130)]
    encoded[3], encoded[70] = b"", b"rubbish"
    encoded[129] = encode(random_pixels(0, 6, 9, 3), "png")

    def read(number: int) -> bytes:
        if number == 100:
            raise OSError("disk gone")
        return encoded[number]

    faults = decode_all(torch.empty((130, 3, 6, 6), dtype=torch.uint8), range(130), read)
    assert faults == {
        3: "is empty",
        70: "cannot be decoded",
        100: "cannot be read (disk gone)",
        129: "measures 9x6 where the first measures 6x6",
    }


def test_a_transform_is_applied_before_the_size_is_checked():
    out = torch.empty((1, 3, 2, 2), dtype=torch.uint8)
    assert decode_all(out, [0], lambda _: encode(random_pixels(5, 8, 8, 3), "png"), lambda x: x[:, :2, :2]) == {}
    assert torch.equal(out[0], torch.from_numpy(random_pixels(5, 8, 8, 3)).permute(2, 0, 1)[:, :2, :2])
