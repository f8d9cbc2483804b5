"""Images in ImageNet's folder layout: DIR/train/<class>/*, and DIR/val/<class>/* for the test part.

Each is resized so that its shorter side is 8/7 of the wanted size (256 for 224: torchvision's published accuracies are
measured so) and the center is kept.
"""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import torch

from layers.errors import UsageError
from trainers.data.decode import ProgressFn, decode_all
from trainers.data.manifest import Manifest, content_of
from trainers.data.sources.builtin import Source
from trainers.data.stream import StreamedImages

__all__ = ["ImageFiles", "imagefolder_source"]

_LAYOUT = "an imagefolder has train/CLASS/* and val/CLASS/*"


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageFiles:
    """Image files of a folder, by row."""

    folder: str
    names: pa.BinaryArray
    """Relative to the folder; as bytes, of which a million take a fifth of what strings would."""

    @classmethod
    def below(cls, folder: Path, paths: list[str]) -> "ImageFiles":
        """Those paths, all of which begin with the folder's."""
        start = len(str(folder)) + 1
        names = pa.array((os.fsencode(path[start:]) for path in paths), pa.binary())
        return cls(folder=os.path.abspath(folder), names=names)

    def read(self, row: int) -> bytes:
        """The whole file; raises OSError where it cannot be read."""
        return Path(self.folder, self._name(row)).read_bytes()

    def name(self, row: int) -> str:
        """The file's name, quoted, from the folder's own name on."""
        return repr(f"{Path(self.folder).name}/{self._name(row)}")

    def _name(self, row: int) -> str:
        return os.fsdecode(self.names[row].as_py())


def imagefolder_source(folder: str, image_size: int) -> Source:
    """Open the set; raises UsageError where the folder is not there or has not this layout."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    parts = {"train": Path(folder) / "train", "test": Path(folder) / "val"}
    classes = _classes(parts["train"])
    foreign = sorted(_classes(parts["test"]).keys() - classes.keys())
    if foreign:
        raise UsageError(f"{str(parts['test'])!r} has a class {foreign[0]!r}, which {str(parts['train'])!r} has not.")
    found = {}
    for part, path in parts.items():
        shown = partial(_is_image, len(str(path)), IMG_EXTENSIONS)
        found[part] = make_dataset(path, classes, is_valid_file=shown, allow_empty=True)
    files = {part: ImageFiles.below(parts[part], [path for path, _ in some]) for part, some in found.items()}
    shape, fit = (3, image_size, image_size), partial(_fit, size=image_size)

    def read(
        part: str, rows: torch.Tensor, told: ProgressFn = lambda count: None
    ) -> tuple[torch.Tensor, dict[int, str]]:
        out, wanted = torch.empty((len(rows), *shape), dtype=torch.uint8), rows.tolist()
        faults = decode_all(out, range(len(rows)), lambda place: files[part].read(wanted[place]), fit, told)
        return out, {place: f"{files[part].name(wanted[place])} {fault}" for place, fault in faults.items()}

    def stream(rows: torch.Tensor, listing: Manifest) -> StreamedImages:
        content = content_of(listing, "train")
        return StreamedImages(encoded=files["train"], rows=rows, image_shape=shape, fit=fit, content=content)

    return Source(
        labels={part: torch.tensor([label for _, label in some], dtype=torch.int64) for part, some in found.items()},
        classes=len(classes),
        image_bytes=3 * image_size**2,
        read=read,
        stream=stream,
    )


def _classes(path: Path) -> dict[str, int]:
    """Class folders by name, in sorted order."""
    if not path.is_dir():
        raise UsageError(f"the folder {str(path)!r} does not exist; {_LAYOUT}.")
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UsageError(f"the folder {str(path)!r} has no class folders; {_LAYOUT}.")
    return {name: number for number, name in enumerate(names)}


def _is_image(root: int, extensions: tuple[str, ...], path: str) -> bool:
    """Whether a file has an image's extension, and neither it nor a folder below the root (its length) is hidden."""
    return path.lower().endswith(extensions) and f"{os.sep}." not in path[root:]


def _fit(image: torch.Tensor, size: int) -> torch.Tensor:
    """The middle of an image (3, H, W) as (3, size, size)."""
    from torchvision.transforms.v2 import functional as transforms

    return transforms.center_crop(transforms.resize(image, [round(size * 8 / 7)], antialias=True), [size, size])
