"""Images of any size to squares of one size: torchvision's resize of the shorter side, then its center crop."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainers.data.spec import usual_resize_size

__all__ = ["ResizeAndCrop"]


@dataclass(frozen=True, kw_only=True)
class ResizeAndCrop:
    """From an image (3, H, W) to its middle, (3, image_size, image_size)."""

    image_size: int
    resize_size: int
    """Length of the shorter side before the crop."""
    interpolation: str = "bilinear"
    """One of `trainers.data.spec.INTERPOLATIONS`."""

    @classmethod
    def usual(cls, image_size: int, resize_size: int | None, interpolation: str | None) -> ResizeAndCrop:
        """Return the transform with `usual_resize_size` before the crop, and bilinear, where none is given."""
        return cls(
            image_size=image_size,
            resize_size=resize_size or usual_resize_size(image_size),
            interpolation=interpolation or "bilinear",
        )

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return the middle of the image."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as transforms

        mode = InterpolationMode(self.interpolation)
        resized = transforms.resize(image, [self.resize_size], interpolation=mode, antialias=True)
        return transforms.center_crop(resized, [self.image_size, self.image_size])
