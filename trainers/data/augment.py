"""What happens to a batch on its device before the network sees it: random crop, mirror, rotation, normalization.

The same distribution as torchvision's RandomCrop(padding, black), RandomHorizontalFlip(0.5) and RandomRotation
(bilinear, black), for a whole batch at once. Our deviation: the padding is an eighth of the image's side, the usual
4 pixels for CIFAR's 32, 1 for 8x8 digits.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F

from layers.errors import UsageError
from trainers.data.spec import AUGMENTATIONS

__all__ = ["augment", "normalize"]


def augment(images: torch.Tensor, kind: str, generator: torch.Generator, *, rotation: float = 0.0) -> torch.Tensor:
    """Move each image of (n, C, H, W) by its own draw, then rotate it by up to `rotation` degrees either way.

    `kind` is one of `trainers.data.spec.AUGMENTATIONS`. The generator must be on the images' device.
    """
    if kind not in AUGMENTATIONS:
        raise UsageError(f"augment (={kind!r}) must be one of {', '.join(AUGMENTATIONS)}")
    if kind != "none":
        images = _random_crop(images, max(1, images.shape[-1] // 8), generator)
    if kind == "crop-flip":
        images = _random_flip(images, generator)
    return _random_rotation(images, rotation, generator) if rotation else images


def normalize(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Return (images / 255 - mean) / std of uint8 (n, C, H, W) as float32, channels last in memory.

    Of float32 images it is (images - mean) / std.
    """
    unit = 255 if images.dtype == torch.uint8 else 1
    scale, shift = _scale_and_shift(mean, std, unit, images.device)
    copied = images.to(torch.float32, memory_format=torch.channels_last, copy=True)
    return copied.mul_(scale).sub_(shift)


@cache
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], unit: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors (C, 1, 1), made once for a set and device: a GPU would wait for them at each batch."""
    scale = torch.tensor([1 / (unit * s) for s in std], device=device).view(-1, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=device).view(-1, 1, 1)
    return scale, shift


def _random_crop(images: torch.Tensor, pad: int, generator: torch.Generator) -> torch.Tensor:
    offsets = torch.randint(2 * pad + 1, (2, len(images)), generator=generator, device=images.device)
    return _crop(images, pad, offsets)


def _crop(images: torch.Tensor, pad: int, offsets: torch.Tensor) -> torch.Tensor:
    """Cut image n out of its padded copy from row offsets[0, n] and column offsets[1, n] on, at its former size."""
    height, width = images.shape[-2:]
    windows = F.pad(images, [pad] * 4).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, offsets[0], offsets[1]]


def _random_flip(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    chosen = torch.randint(2, (len(images),), generator=generator, device=images.device, dtype=torch.bool)
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(3), images)


def _random_rotation(images: torch.Tensor, degrees: float, generator: torch.Generator) -> torch.Tensor:
    turns = 2 * torch.rand(len(images), generator=generator, device=images.device) - 1
    return _rotate(images, turns * degrees)


def _rotate(images: torch.Tensor, degrees: torch.Tensor) -> torch.Tensor:
    """Turn image n counter-clockwise about its center by degrees[n], bilinear between pixels, black outside."""
    angle = degrees * (math.pi / 180)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    aspect = images.shape[-2] / images.shape[-1]  # affine_grid's coordinates run from -1 to 1 on either axis
    matrices = torch.stack([cos, -sin * aspect, zero, sin / aspect, cos, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    turned = F.grid_sample(images.float(), grid, align_corners=False)
    return turned if images.is_floating_point() else turned.round_().to(images.dtype)
