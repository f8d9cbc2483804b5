"""Images that are decoded when they are needed, for sets whose decoded images do not fit in memory.

What comes out depends on the rows asked for alone, so training that resumes at any epoch sees the same images.
"""

import hashlib
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from layers.errors import OvertoneError
from trainers.data.decode import Fit, decode_at, decode_threads

__all__ = ["EncodedImages", "StreamedImages"]

_AHEAD = 2  # batches that are decoded while the consumer has one
_CHUNK = 16  # images that a thread takes at a time


class EncodedImages(Protocol):
    """Encoded images by row, read from any thread; pickles, and opens its files anew where it arrives."""

    def read(self, row: int) -> bytes:
        """A whole image file; raises OSError where it cannot be read."""

    def name(self, row: int) -> str:
        """Which image it is, for a message: file, and row where the file has several."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamedImages:
    """uint8 images (n, 3, H, W) that stay encoded until they are read; they live on the CPU."""

    encoded: EncodedImages
    rows: torch.Tensor
    """int64 (n,): which of the encoded images these are."""
    image_shape: tuple[int, int, int]
    """(3, H, W)."""
    fit: Fit | None = None
    """What brings a decoded image (3, h, w) to the shape; without it all must have it."""
    content: str
    """Stands for that of all encoded images: a hash over the names and sizes of their files."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """(n, 3, H, W)."""
        return torch.Size((len(self.rows), *self.image_shape))

    @property
    def identity(self) -> bytes:
        """sha256 that stands for the images' content in a fingerprint."""
        digest = hashlib.sha256(self.content.encode())
        digest.update(self.rows.contiguous().numpy().data)
        return digest.digest()

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """The images (k, 3, H, W) at rows (k,) of 0..n-1; raises OvertoneError naming one that cannot be used."""
        (images,) = self.read_ahead([rows])
        return images

    def read_ahead(self, batches: Sequence[torch.Tensor], *, pin: bool = False) -> Generator[torch.Tensor, None, None]:
        """What `read` gives for each batch of rows, decoded in threads while the consumer works on earlier ones.

        They take as many threads as torch does. Closing the iterator ends them; so does an error. With `pin` the images
        are in page-locked memory, from where a GPU copies them on its own.
        """
        pool = ThreadPoolExecutor(decode_threads(self.shape[1:].numel(), self.fit), thread_name_prefix="decode")
        try:
            waiting: deque[_Batch] = deque()
            for rows in batches:
                waiting.append(_Batch(self, rows, pool, pin))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().wait()
            while waiting:
                yield waiting.popleft().wait()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _Batch:
    """Images on their way."""

    def __init__(self, images: StreamedImages, rows: torch.Tensor, pool: ThreadPoolExecutor, pin: bool) -> None:
        self.images, self.rows = images, images.rows[rows.cpu()].tolist()
        self.out = torch.empty((len(rows), *images.image_shape), dtype=torch.uint8, pin_memory=pin)
        places = range(len(rows))
        chunks = (places[first : first + _CHUNK] for first in range(0, len(rows), _CHUNK))
        self.chunks: list[Future[None]] = [pool.submit(self._decode, chunk) for chunk in chunks]

    def wait(self) -> torch.Tensor:
        """The images, once they are all there."""
        for chunk in self.chunks:
            chunk.result()
        return self.out

    def _decode(self, places: range) -> None:
        encoded = self.images.encoded
        for place in places:
            row = self.rows[place]
            fault = decode_at(self.out, place, partial(encoded.read, row), self.images.fit)
            if fault:
                raise OvertoneError(
                    f"{encoded.name(row)} {fault}; only without stream are images left out that cannot be used."
                )
