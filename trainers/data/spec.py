"""Which images a trial sees and how they are split, as plain values."""

import math
import os
from dataclasses import dataclass, replace
from typing import Any

from layers.errors import UsageError

__all__ = ["AUGMENTATIONS", "INTERPOLATIONS", "DataSpec", "usual_resize_size"]

AUGMENTATIONS = ("none", "shift", "crop-flip")
"""What training images go through: nothing, random crops alone (a mirrored digit is no digit), crops and mirroring."""

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
"""How images are resized, by torchvision's names."""

_IMAGENET_SIZE = 224
_FORMS = "'digits', 'cifar10', 'parquet:DIR' or 'imagefolder:DIR'"


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Which images, and how they are split."""

    name: str = "digits"
    """'digits', 'cifar10', 'parquet:DIR' (Hugging Face image layout) or 'imagefolder:DIR' (ImageNet's layout); or
    'object:' and what they are, for images that the caller holds (`trainers.data.objects`)."""
    data_dir: str = "data"
    """Folder of 'cifar10', which is downloaded there if it is missing."""
    seed: int = 0
    """Fixes the splits; it is not the seed of a trial."""
    train_limit: int | None = None
    """The most training images, the first of the seeded shuffle; validation and test images stay the same."""
    val_from: str = "train"
    """'train': validation images are held out of the training images (10 %; digits 25 %, which makes 60/20/20).
    'test': one half of the test images, fixed by seed, becomes the validation split and the other half stays the test
    split, for weights that have already seen every training image.
    'validation': the validation-*.parquet beside test-*.parquet are the validation split."""
    image_size: int | None = None
    """Side in pixels of the center crop of images in a folder: default 224 for an imagefolder; for Parquet, images keep
    their own size, which must be one for all. Other sets keep theirs."""
    resize_size: int | None = None
    """Length of the shorter side before the crop. Default: 8/7 of `image_size` (256 for 224); for Parquet, none more if
    its images measure `image_size`."""
    interpolation: str | None = None
    """One of `INTERPOLATIONS`. Default: bilinear."""
    channels: int | None = None
    """1: images become gray, by Pillow's weights of red, green and blue. 3: gray images keep three equal planes, for a
    network that takes color. Default: 1 if all images are gray, else 3."""
    stream: bool = False
    """Whether training images are decoded when they are needed, for a folder whose decoded images do not fit in memory.
    They keep three planes even if all are gray, and an unusable image ends the training."""
    mean: tuple[float, ...] | None = None
    """The mean of each channel, or one for all, that the network's weights were trained with; of uint8 images scaled to
    [0, 1]. Default: ImageNet's, of digits their own; of images that the caller holds there is none, but float images
    are taken as they are without it."""
    std: tuple[float, ...] | None = None
    """The deviation that goes with `mean`."""
    augment: str | None = None
    """One of `AUGMENTATIONS`. Default: shift if all images are gray, else crop-flip."""

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self._is_known()):
            raise UsageError(f"dataset (={self.name!r}) must be one of {_FORMS}")
        self._check_normalization()
        self._check_sizes()
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:  # the CPU's generator reads no more bits
            raise UsageError(f"data seed (={self.seed}) must be a whole number of at least 0 and below 2**32")
        if not (self.train_limit is None or (isinstance(self.train_limit, int) and self.train_limit >= 2)):
            raise UsageError(f"train_limit (={self.train_limit}) must be a whole number of at least 2 (for batch norm)")
        if self.val_from not in ("train", "test", "validation"):
            raise UsageError(f"val_from (={self.val_from!r}) must be 'train', 'test' or 'validation'")
        if self.val_from == "validation" and self.kind != "parquet":
            raise UsageError(
                f"val_from (='validation') must be 'train' or 'test' for {self.name!r}, which has two parts"
            )
        if not isinstance(self.stream, bool):
            raise UsageError(f"stream (={self.stream!r}) must be true or false")
        if self.stream and not self.folder:
            raise UsageError(
                f"stream (={self.stream}) must be false for {self.name!r}; 'parquet:DIR' and 'imagefolder:DIR' take it"
            )

    def _is_known(self) -> bool:
        in_folder = self.kind in ("parquet", "imagefolder") and self.folder != "" and "\0" not in self.folder
        return in_folder or self.is_object or self.name in ("digits", "cifar10")

    def _check_sizes(self) -> None:
        """Check how images of a folder are brought to one size, and the number of channels."""
        for name in ("image_size", "resize_size", "interpolation"):
            value = getattr(self, name)
            if value is not None and not self.folder:
                raise UsageError(
                    f"{name} (={value!r}) must be left out for {self.name!r}; imagefolder:DIR and parquet:DIR take it"
                )
            if name != "interpolation" and not (value is None or (isinstance(value, int) and value >= 1)):
                raise UsageError(f"{name} (={value}) must be a whole number of at least 1")
            if value is not None and name != "image_size" and self.kind == "parquet" and self.image_size is None:
                raise UsageError(f"{name} (={value!r}) must be left out for {self.name!r} without an image_size")
        if self.interpolation is not None and self.interpolation not in INTERPOLATIONS:
            raise UsageError(f"interpolation (={self.interpolation!r}) must be one of {', '.join(INTERPOLATIONS)}")
        crop = self.image_size or _IMAGENET_SIZE
        if self.resize_size is not None and self.resize_size < crop:
            raise UsageError(f"resize_size (={self.resize_size}) must be at least the image size, {crop}")
        if self.channels is not None and self.is_object:
            raise UsageError(f"channels (={self.channels}) must be left out for images that are given as objects")
        if not (self.channels is None or (type(self.channels) is int and self.channels in (1, 3))):
            raise UsageError(f"channels (={self.channels}) must be 1 or 3")

    def _check_normalization(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise UsageError(f"mean (={self.mean}) and std (={self.std}) must be given together")
        for name, least in (("mean", -math.inf), ("std", 0.0)):
            values = getattr(self, name)
            if values is None:
                continue
            values = values.tolist() if hasattr(values, "tolist") else values  # numpy's and torch's
            values = tuple(values) if isinstance(values, list | tuple) else (values,)
            if not values or not all(isinstance(v, int | float) and least < v < math.inf for v in values):
                above = " above 0" if name == "std" else ""
                raise UsageError(f"{name} (={getattr(self, name)!r}) must be finite numbers{above}, one a channel")
            object.__setattr__(self, name, tuple(float(value) for value in values))  # JSON has lists only
        if self.augment is not None and self.augment not in AUGMENTATIONS:
            raise UsageError(f"augment (={self.augment!r}) must be one of {', '.join(AUGMENTATIONS)}")

    def normalization(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Return mean and deviation of so many channels, None if none are given; raise UsageError for other numbers."""
        if self.mean is None or self.std is None:
            return None
        mean, std = (values * channels if len(values) == 1 else values for values in (self.mean, self.std))
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != channels:
                raise UsageError(f"{name} (={list(values)}) must be one number, or one for each of {channels} channels")
        return mean, std

    def resolved(self) -> "DataSpec":
        """Return the spec with the defaults of an imagefolder's sizes written out."""
        if self.kind != "imagefolder":
            return self
        size = self.image_size or _IMAGENET_SIZE
        before, how = self.resize_size or usual_resize_size(size), self.interpolation or "bilinear"
        return replace(self, image_size=size, resize_size=before, interpolation=how)

    def prepared(self, *, mean: Any, std: Any, image_size: int, resize_size: int, interpolation: str) -> "DataSpec":
        """Return the same images as certain weights take them, wherever this spec leaves that open.

        `mean` and `std` have a number for each of the channels that the weights take.
        """
        if self.is_object or self.channels not in (None, len(mean)):
            return self
        spec = replace(self, channels=len(mean))
        spec = spec if self.mean is not None else replace(spec, mean=mean, std=std)
        if not self.folder:
            return spec
        if self.image_size is None:
            spec = replace(spec, image_size=image_size, resize_size=self.resize_size or resize_size)
        return replace(spec, interpolation=self.interpolation or interpolation)

    @property
    def kind(self) -> str:
        """The name up to its colon."""
        return self.name.partition(":")[0]

    @property
    def is_object(self) -> bool:
        """Whether the caller holds the images, so that they must be given whenever they are read."""
        return self.name.startswith("object:")

    @property
    def folder(self) -> str:
        """The DIR of the name ('~' is the home folder), '' if it has none."""
        return "" if self.is_object else os.path.expanduser(self.name.partition(":")[2])

    def absolute(self) -> "DataSpec":
        """Return the same data for a process with another working directory."""
        name = f"{self.kind}:{os.path.abspath(self.folder)}" if self.folder else self.name
        return replace(self, name=name, data_dir=os.path.abspath(os.path.expanduser(self.data_dir)))

    @property
    def label(self) -> str:
        """The name as others may read it: only the last part of DIR."""
        return f"{self.kind}:{os.path.basename(os.path.abspath(self.folder))}" if self.folder else self.name


def usual_resize_size(image_size: int) -> int:
    """Return 8/7 of the size: 256 for 224, the resize of torchvision's first published accuracies."""
    return round(image_size * 8 / 7)
