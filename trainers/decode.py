"""Encoded images to uint8 tensors, in threads, with what is wrong with those that cannot be used."""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image

from layers.errors import OvertoneError

__all__ = ["decode_all", "decode_one", "refuse"]

_CHUNK = 64
_LARGE = 3 * 128 * 128  # from here on two threads were faster than one
_NAMED = 3


def decode_one(encoded: bytes) -> torch.Tensor:
    """An encoded image as uint8 (3, H, W); grey becomes three equal planes; ValueError if unreadable."""
    if not encoded:
        raise ValueError("is empty")
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError("cannot be decoded") from error


def decode_all(
    out: torch.Tensor,
    numbers: Sequence[int],
    read: Callable[[int], bytes],
    fit: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> dict[int, str]:
    """Fill out[i], out (n, 3, H, W), with the image read(i) for i in numbers, through fit where one is given.

    Returns, by its number, what is wrong with each image that cannot be used. Large images take as many threads as
    torch does; for small ones Python's own work outweighs Pillow's, and threads would only wait for each other.
    """

    def one(number: int) -> str:
        try:
            image = decode_one(read(number))
        except (OSError, ValueError) as error:
            return str(error)
        image = image if fit is None else fit(image)
        if image.shape != out.shape[1:]:
            return f"measures {_size(image)} where the first measures {_size(out)}"
        out[number] = image
        return ""

    def chunk(first: int) -> list[tuple[int, str]]:
        return [(number, one(number)) for number in numbers[first : first + _CHUNK]]

    large = fit is not None or out[:1].numel() >= _LARGE
    with ThreadPoolExecutor(torch.get_num_threads() if large else 1) as pool:
        chunks = pool.map(chunk, range(0, len(numbers), _CHUNK))
        return {number: fault for results in chunks for number, fault in results if fault}


def refuse(name: str, faults: Sequence[str], total: int) -> None:
    """Raise OvertoneError that counts the faults ('FILE is empty') and names the first; with none, do nothing."""
    if faults:
        more = ", ..." if len(faults) > _NAMED else ""
        raise OvertoneError(
            f"{len(faults)} of {total} images of {name!r} cannot be used: {', '.join(faults[:_NAMED])}{more}."
        )


def _size(images: torch.Tensor) -> str:
    return f"{images.shape[-1]}x{images.shape[-2]}"
