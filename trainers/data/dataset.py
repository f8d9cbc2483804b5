"""Labeled images in three splits, and what a network must know about them."""

import hashlib
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import InitVar, dataclass, field

import torch

from layers.errors import UsageError
from trainers.data.augment import normalize
from trainers.data.stream import StreamedImages

__all__ = ["Data", "Split"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Images and their labels."""

    images: torch.Tensor | StreamedImages
    """uint8 or float32 (n, C, H, W), or images that are decoded to uint8 when they are read."""
    labels: torch.Tensor
    """int64 (n,)."""

    def __post_init__(self) -> None:
        shape = self.images.shape
        if self.dtype not in (torch.uint8, torch.float32) or len(shape) != 4 or self.labels.shape != shape[:1]:
            raise UsageError(
                f"images (={self.dtype}, {tuple(shape)}) must be uint8 or float32 (n, C, H, W) "
                f"and labels (={tuple(self.labels.shape)}) must be (n,)"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the images, uint8 or float32."""
        return torch.uint8 if isinstance(self.images, StreamedImages) else self.images.dtype

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device | str) -> "Split":
        """Return the split on a device; copy nothing that is there already, and leave a streamed split as it is."""
        if isinstance(self.images, StreamedImages):
            return self
        return Split(images=self.images.to(device), labels=self.labels.to(device))

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the images (k, C, H, W) at rows (k,) on the images' device, the CPU for streamed images."""
        if isinstance(self.images, StreamedImages):
            return self.images.read(rows)
        return self.images[rows.to(self.images.device)]

    def batches(
        self, rows: Sequence[torch.Tensor], device: torch.device | str
    ) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
        """Yield images (k, C, H, W) and labels (k,) on the device for each tensor (k,) of rows, in order.

        Streamed images are decoded ahead by threads that end with the iterator: exhaust it or close it.
        """
        device = torch.device(device)
        overlaps = device.type == "cuda"
        rows = [batch.to(self.labels.device) for batch in rows]  # now: later each copy would wait for the GPU's work
        with closing(self._images(rows, device)) as batches:
            for images, batch in zip(batches, rows, strict=True):
                labels = self.labels[batch]
                yield images.to(device, non_blocking=overlaps), labels.to(device, non_blocking=overlaps)

    def _images(self, rows: Sequence[torch.Tensor], device: torch.device) -> Generator[torch.Tensor, None, None]:
        if isinstance(self.images, StreamedImages):
            return self.images.read_ahead(rows, pin=device.type == "cuda")
        return (self.take(batch) for batch in rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """Three splits and what a network must know about them; they pickle, streamed images as their files' names."""

    train: Split
    val: Split
    test: Split
    classes: int
    mean: tuple[float, ...]
    """One value a channel, of uint8 images scaled to [0, 1], of float32 images as they are."""
    std: tuple[float, ...]
    augment: str
    """'none', 'shift' (crops only: a mirrored digit is no digit) or 'crop-flip'."""
    warnings: tuple[str, ...] = ()
    """A sentence for each split from which unusable images were left out."""
    fingerprint: str = field(init=False)
    """SHA-256 over everything that a trial learns from and is measured on: the splits and their normalization. Streamed
    images count by the names and sizes of their files and by their rows, not by their pixels."""
    cached_fingerprint: InitVar[str | None] = None
    """The fingerprint, if it is known: hashing a large set takes seconds."""

    def __post_init__(self, cached_fingerprint: str | None) -> None:
        object.__setattr__(self, "fingerprint", cached_fingerprint or self._hash())

    @property
    def channels(self) -> int:
        """Planes of an image: 1 for gray, 3 for color."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        """Height of an image in pixels."""
        return self.train.images.shape[2]

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Return images (n, C, H, W) as a network takes them: (images - mean) / std, uint8 ones scaled to [0, 1]."""
        return normalize(images, self.mean, self.std)

    def _hash(self) -> str:
        digest = hashlib.sha256(repr((self.classes, self.mean, self.std, self.augment)).encode())
        for split in (self.train, self.val, self.test):
            for part in (split.images, split.labels):
                digest.update(repr(tuple(part.shape)).encode())
                digest.update(_content(part))
        return digest.hexdigest()


def _content(part: torch.Tensor | StreamedImages) -> bytes | memoryview:
    return part.identity if isinstance(part, StreamedImages) else part.cpu().contiguous().numpy().data
