"""Images in ImageNet's folder layout: DIR/train/<class>/*, and DIR/val/<class>/* for the test part.

Each is resized so that its shorter side is 8/7 of the wanted size (256 for 224: torchvision's published accuracies are
measured so) and the centre is kept. All of a split are held decoded; `memory.check_memory` bounds how many.
"""

from pathlib import Path

import torch

from layers.errors import UsageError
from trainers.decode import decode_all, refuse
from trainers.sources import Source

__all__ = ["imagefolder_source"]

_LAYOUT = "an imagefolder has train/CLASS/* and val/CLASS/*"


def imagefolder_source(folder: str, image_size: int) -> Source:
    """Open the set; raises UsageError where the folder is not there or has not this layout."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    parts = {"train": Path(folder) / "train", "test": Path(folder) / "val"}
    classes = _classes(parts["train"])
    foreign = sorted(_classes(parts["test"]).keys() - classes.keys())
    if foreign:
        raise UsageError(f"{str(parts['test'])!r} has a class {foreign[0]!r}, which {str(parts['train'])!r} has not.")
    files = {part: make_dataset(path, classes, IMG_EXTENSIONS, allow_empty=True) for part, path in parts.items()}

    def read(part: str, rows: torch.Tensor) -> torch.Tensor:
        paths = [Path(files[part][row][0]) for row in rows.tolist()]
        out = torch.empty((len(paths), 3, image_size, image_size), dtype=torch.uint8)
        faults = decode_all(
            out, range(len(paths)), lambda i: paths[i].read_bytes(), lambda image: _fit(image, image_size)
        )
        named = [f"{str(paths[number].relative_to(folder))!r} {fault}" for number, fault in faults.items()]
        refuse(f"imagefolder:{folder}", named, len(paths))
        return out

    return Source(
        labels={part: torch.tensor([label for _, label in found], dtype=torch.int64) for part, found in files.items()},
        classes=len(classes),
        image_bytes=3 * image_size**2,
        read=read,
    )


def _classes(path: Path) -> dict[str, int]:
    """Class folders by name, in sorted order."""
    if not path.is_dir():
        raise UsageError(f"the folder {str(path)!r} does not exist; {_LAYOUT}.")
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    if not names:
        raise UsageError(f"the folder {str(path)!r} has no class folders; {_LAYOUT}.")
    return {name: number for number, name in enumerate(names)}


def _fit(image: torch.Tensor, size: int) -> torch.Tensor:
    """The middle of an image (3, H, W) as (3, size, size)."""
    from torchvision.transforms.v2 import functional as transforms

    return transforms.center_crop(transforms.resize(image, [round(size * 8 / 7)], antialias=True), [size, size])
