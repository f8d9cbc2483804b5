"""Gray images for networks of color, and the other way round."""

from dataclasses import dataclass, replace

import torch

from trainers.data.dataset import Split
from trainers.data.decode import Transform
from trainers.data.stream import StreamedImages

__all__ = ["with_channels"]

_CHUNK = 256  # images


def with_channels(split: Split, channels: int) -> Split:
    """Return the split with images of 1 or 3 channels.

    One becomes three equal planes, which share memory; three become Pillow's gray, exactly the plane where all are
    equal. Streamed images are converted when they are read.
    """
    images = split.images
    if images.shape[1] == channels:
        return split
    if isinstance(images, StreamedImages):
        height, width = images.image_shape[1:]
        return replace(
            split, images=replace(images, image_shape=(1, height, width), transform=_Gray(after=images.transform))
        )
    if channels == 3:
        return replace(split, images=images.expand(-1, 3, -1, -1))
    out = torch.empty((len(images), 1, *images.shape[2:]), dtype=images.dtype)
    for first in range(0, len(images), _CHUNK):
        out[first : first + _CHUNK] = _gray(images[first : first + _CHUNK])
    return replace(split, images=out)


@dataclass(frozen=True, kw_only=True)
class _Gray:
    """From a decoded image (3, h, w) to gray (1, H, W) by way of another transform."""

    after: Transform | None

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return _gray(image if self.after is None else self.after(image))


def _gray(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 (..., 1, H, W) of (..., 3, H, W): (19595 R + 38470 G + 7471 B + 0x8000) >> 16, as Pillow does."""
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32).view(3, 1, 1)
    return ((images.int() * weights).sum(-3, keepdim=True, dtype=torch.int32) + 0x8000).bitwise_right_shift(16).byte()
