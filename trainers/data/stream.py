"""Images that are decoded when they are needed, for sets whose decoded images do not fit in memory.

The images depend only on the rows that are read, so training that resumes at any epoch sees the same ones.
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
from trainers.data.decode import Transform, decode_at, decode_threads

__all__ = ["EncodedImages", "StreamedImages"]

_AHEAD = 2  # batches that are decoded while the consumer has one
_CHUNK = 16  # images that a thread takes at a time


class EncodedImages(Protocol):
    """Encoded images by row, read from any thread; pickles, and opens its files anew where it arrives."""

    def read(self, row: int) -> bytes:
        """Return a whole image file; raise OSError if it cannot be read."""

    def name(self, row: int) -> str:
        """Name the image in a message: its file, and its row if the file has several."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamedImages:
    """uint8 images (n, C, H, W) that stay encoded until they are read; they live on the CPU."""

    encoded: EncodedImages
    rows: torch.Tensor
    """int64 (n,): the rows of the encoded images."""
    image_shape: tuple[int, int, int]
    """(C, H, W)."""
    transform: Transform | None = None
    """Brings a decoded image (3, h, w) to the shape; without it every image must have that shape."""
    upright: bool = False
    """Whether images are turned as their EXIF orientation says."""
    content: str
    """Stands for the content of all encoded images: a hash over the names and sizes of their files."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """(n, C, H, W)."""
        return torch.Size((len(self.rows), *self.image_shape))

    @property
    def identity(self) -> bytes:
        """SHA-256 that stands for the images' content in a fingerprint."""
        digest = hashlib.sha256(self.content.encode())
        digest.update(self.rows.contiguous().numpy().data)
        return digest.digest()

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the images (k, C, H, W) at rows (k,) of 0..n-1; raise OvertoneError naming one that is unusable."""
        (images,) = self.read_ahead([rows])
        return images

    def read_ahead(self, batches: Sequence[torch.Tensor], *, pin: bool = False) -> Generator[torch.Tensor, None, None]:
        """Yield what `read` returns for each batch of rows, decoded in threads while the consumer has earlier ones.

        There are as many threads as torch uses. Closing the iterator ends them, and so does an error. With `pin` the
        images are in page-locked memory, from which a GPU copies them without the CPU.
        """
        threads = decode_threads(self.shape[1:].numel(), self.transform)
        pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
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
    """Images that are being decoded."""

    def __init__(self, images: StreamedImages, rows: torch.Tensor, pool: ThreadPoolExecutor, pin: bool) -> None:
        self.images = images
        self.rows = images.rows[rows.cpu()].tolist()
        self.out = torch.empty((len(rows), *images.image_shape), dtype=torch.uint8, pin_memory=pin)
        indices = range(len(rows))
        chunks = (indices[first : first + _CHUNK] for first in range(0, len(rows), _CHUNK))
        self.chunks: list[Future[None]] = [pool.submit(self._decode, chunk) for chunk in chunks]

    def wait(self) -> torch.Tensor:
        """Return the images when all of them are decoded."""
        for chunk in self.chunks:
            chunk.result()
        return self.out

    def _decode(self, indices: range) -> None:
        encoded = self.images.encoded
        for index in indices:
            row = self.rows[index]
            read, upright = partial(encoded.read, row), self.images.upright
            error = decode_at(self.out, index, read, self.images.transform, upright=upright)
            if error:
                raise OvertoneError(f"{encoded.name(row)} {error}; without stream, unusable images are left out")
