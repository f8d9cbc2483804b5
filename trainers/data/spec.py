"""Which images a trial sees and how they are split, as plain values."""

import math
import os
from dataclasses import dataclass, replace

from layers.errors import UsageError

__all__ = ["AUGMENTATIONS", "DataSpec"]

AUGMENTATIONS = ("none", "shift", "crop-flip")
"""What training images go through: nothing, random crops alone (a mirrored digit is no digit), crops and mirroring."""

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
    split, for weights that have already seen every training image."""
    image_size: int | None = None
    """Side in pixels of the center crop of an imagefolder (default 224); other sets keep their own size."""
    stream: bool = False
    """Whether training images are decoded when they are needed, for a folder whose decoded images do not fit in memory.
    They keep three planes even if all are gray, and an unusable image ends the training."""
    mean: tuple[float, ...] | None = None
    """Of images that the caller holds: the mean of each channel, of uint8 images scaled to [0, 1], that the network's
    weights were trained with. Float images are taken as they are without it."""
    std: tuple[float, ...] | None = None
    """The deviation that goes with `mean`."""
    augment: str | None = None
    """Of images that the caller holds: one of `AUGMENTATIONS`. Default: shift for one channel, else crop-flip."""

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self._is_known()):
            raise UsageError(f"dataset (={self.name!r}) must be one of {_FORMS}")
        self._check_object_settings()
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:  # the CPU's generator reads no more bits
            raise UsageError(f"data seed (={self.seed}) must be a whole number of at least 0 and below 2**32")
        if not (self.train_limit is None or (isinstance(self.train_limit, int) and self.train_limit >= 2)):
            raise UsageError(f"train_limit (={self.train_limit}) must be a whole number of at least 2 (for batch norm)")
        if self.val_from not in ("train", "test"):
            raise UsageError(f"val_from (={self.val_from!r}) must be 'train' or 'test'")
        if self.image_size is not None and self.kind != "imagefolder":
            raise UsageError(
                f"image_size (={self.image_size}) must be left out for {self.name!r}; only 'imagefolder:DIR' takes it"
            )
        if not (self.image_size is None or (isinstance(self.image_size, int) and self.image_size >= 1)):
            raise UsageError(f"image_size (={self.image_size}) must be a whole number of at least 1")
        if not isinstance(self.stream, bool):
            raise UsageError(f"stream (={self.stream!r}) must be true or false")
        if self.stream and not self.folder:
            raise UsageError(
                f"stream (={self.stream}) must be false for {self.name!r}; 'parquet:DIR' and 'imagefolder:DIR' take it"
            )

    def _is_known(self) -> bool:
        in_folder = self.kind in ("parquet", "imagefolder") and self.folder != "" and "\0" not in self.folder
        return in_folder or self.is_object or self.name in ("digits", "cifar10")

    def _check_object_settings(self) -> None:
        for name in ("mean", "std", "augment"):
            if getattr(self, name) is not None and not self.is_object:
                raise UsageError(
                    f"{name} (={getattr(self, name)!r}) must be left out for {self.name!r}; only images that are given "
                    "as objects take it"
                )
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
