"""Encoded images to uint8 tensors, in threads, with what is wrong with those that cannot be used."""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from PIL import Image

__all__ = ["Fit", "ProgressFn", "decode_all", "decode_at", "decode_one", "decode_threads"]

_CHUNK = 64
_LARGE = 3 * 128 * 128  # from here on two threads were faster than one


def decode_one(encoded: bytes) -> torch.Tensor:
    """An encoded image as uint8 (3, H, W); gray becomes three equal planes, of 16 bits the upper 8 count.

    Raises ValueError where it cannot be read, or its values have no known range (float, 32 bits).
    """
    if not encoded:
        raise ValueError("is empty")
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.mode in ("F", "I"):
                raise ValueError
            wide = image.mode.startswith("I;16")
            shown = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if wide else image
            return torch.from_numpy(np.array(shown.convert("RGB"))).permute(2, 0, 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError("cannot be decoded") from error


Fit = Callable[[torch.Tensor], torch.Tensor]
"""From a decoded image (3, h, w) to one of the wanted size."""

ProgressFn = Callable[[int], None]
"""What hears, again and again, how many more images have been decoded."""


def decode_at(out: torch.Tensor, place: int, read: Callable[[], bytes], fit: Fit | None = None) -> str:
    """Fill out[place], out (n, 3, H, W), with the image read(), through fit where one is given.

    Returns what is wrong with an image that cannot be used, '' where nothing is.
    """
    try:
        image = decode_one(read())
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except ValueError as error:
        return str(error)
    image = image if fit is None else fit(image)
    if image.shape != out.shape[1:]:
        return f"measures {_size(image)} where the first measures {_size(out)}"
    out[place] = image
    return ""


def decode_all(
    out: torch.Tensor,
    numbers: Sequence[int],
    read: Callable[[int], bytes],
    fit: Fit | None = None,
    told: ProgressFn = lambda count: None,
) -> dict[int, str]:
    """Fill out[i], out (n, 3, H, W), with the image read(i) for i in numbers, through fit where one is given.

    Returns, by its number, what is wrong with each image that cannot be used.
    """
    faults: dict[int, str] = {}

    def chunk(first: int) -> list[tuple[int, str]]:
        some = numbers[first : first + _CHUNK]
        return [(number, decode_at(out, number, partial(read, number), fit)) for number in some]

    with ThreadPoolExecutor(decode_threads(out.shape[1:].numel(), fit)) as pool:
        for results in pool.map(chunk, range(0, len(numbers), _CHUNK)):
            faults |= {number: fault for number, fault in results if fault}
            told(len(results))
    return faults


def decode_threads(image_bytes: int, fit: Fit | None) -> int:
    """How many threads decode images of this size fastest.

    Large ones take as many as torch does; for small ones Python's own work outweighs Pillow's, and threads would only
    wait for each other.
    """
    return torch.get_num_threads() if fit is not None or image_bytes >= _LARGE else 1


def _size(images: torch.Tensor) -> str:
    return f"{images.shape[-1]}x{images.shape[-2]}"
