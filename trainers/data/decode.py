"""Encoded images to uint8 tensors, in threads, with the reason why an image cannot be used."""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageOps

from layers.errors import first_line

__all__ = ["AdvanceFn", "Transform", "decode_all", "decode_at", "decode_one", "decode_threads"]

_CHUNK = 64  # images that a thread takes at a time
_LARGE = 3 * 128 * 128  # bytes of an image from which two threads were faster than one

Transform = Callable[[torch.Tensor], torch.Tensor]
"""From a decoded image (3, h, w) to one of the required shape."""

AdvanceFn = Callable[[int], None]
"""A callback that is given the number of images decoded since its last call."""


def decode_one(encoded: bytes, *, upright: bool = False) -> torch.Tensor:
    """Decode an image to uint8 (3, H, W); gray becomes three equal planes, and of 16 bits the upper 8 count.

    With `upright` it is turned as its EXIF orientation says, which Hugging Face's reader does and torchvision's does
    not.

    Raises ValueError if it cannot be read, or if its values have no known range (float, 32 bits).
    """
    if not encoded:
        raise ValueError("is empty")
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.mode in ("F", "I"):
                raise ValueError
            turned = ImageOps.exif_transpose(image) if upright else image
            wide = turned.mode.startswith("I;16")
            narrow = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8)) if wide else turned
            return torch.from_numpy(np.array(narrow.convert("RGB"))).permute(2, 0, 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError("cannot be decoded") from error


def decode_at(
    out: torch.Tensor,
    index: int,
    read: Callable[[], bytes],
    transform: Transform | None = None,
    *,
    upright: bool = False,
) -> str:
    """Fill out[index], out (n, C, H, W), with the image that `read` returns, after `transform` if there is one.

    Returns the reason why the image cannot be used, or ''.
    """
    try:
        image = decode_one(read(), upright=upright)
    except OSError as error:
        return f"cannot be read ({first_line(error)})"
    except ValueError as error:
        return str(error)
    image = image if transform is None else transform(image)
    if image.shape != out.shape[1:]:
        return f"measures {_size(image)} where the first measures {_size(out)}"
    out[index] = image
    return ""


def decode_all(
    out: torch.Tensor,
    indices: Sequence[int],
    read: Callable[[int], bytes],
    transform: Transform | None = None,
    advance: AdvanceFn = lambda count: None,
    *,
    upright: bool = False,
) -> dict[int, str]:
    """Fill out[i], out (n, 3, H, W), with the image read(i) for each index i, after `transform` if there is one.

    Returns the reason why an image cannot be used, by the index of each that cannot.
    """
    errors: dict[int, str] = {}

    def decode_chunk(first: int) -> list[tuple[int, str]]:
        chunk = indices[first : first + _CHUNK]
        return [(index, decode_at(out, index, partial(read, index), transform, upright=upright)) for index in chunk]

    with ThreadPoolExecutor(decode_threads(out.shape[1:].numel(), transform)) as pool:
        for results in pool.map(decode_chunk, range(0, len(indices), _CHUNK)):
            errors |= {index: error for index, error in results if error}
            advance(len(results))
    return errors


def decode_threads(image_bytes: int, transform: Transform | None) -> int:
    """Return how many threads decode images of this size fastest.

    As many as torch uses for large images. For small ones Python's own work outweighs Pillow's, so threads would only
    wait for each other.
    """
    return torch.get_num_threads() if transform is not None or image_bytes >= _LARGE else 1


def _size(images: torch.Tensor) -> str:
    return f"{images.shape[-1]}x{images.shape[-2]}"
