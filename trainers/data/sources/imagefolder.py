"""Images in ImageNet's folder layout: DIR/train/<class>/*, and DIR/val/<class>/* for the test part.

Each is resized so that its shorter side is 8/7 of the required size (256 for 224, as for torchvision's published
accuracies), and its center is kept.
"""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import torch

from layers.errors import UsageError
from trainers.data.decode import AdvanceFn, decode_all
from trainers.data.manifest import Manifest, content_sha256
from trainers.data.sources.source import Source
from trainers.data.stream import StreamedImages

__all__ = ["ImageFiles", "imagefolder_source"]

_LAYOUT = "an imagefolder has train/CLASS/* and val/CLASS/*"


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageFiles:
    """Image files of a folder, by row."""

    folder: str
    names: pa.BinaryArray
    """Relative to the folder; as bytes, of which a million take a fifth of the memory of strings."""

    @classmethod
    def below(cls, folder: Path, paths: list[str]) -> "ImageFiles":
        """Return the files at these paths, all of which begin with the folder's."""
        start = len(str(folder)) + 1
        names = pa.array((os.fsencode(path[start:]) for path in paths), pa.binary())
        return cls(folder=os.path.abspath(folder), names=names)

    def read(self, row: int) -> bytes:
        """Return the whole file; raise OSError if it cannot be read."""
        return Path(self.folder, self._name(row)).read_bytes()

    def name(self, row: int) -> str:
        """Return the file's name, quoted, from the folder's own name on."""
        return repr(f"{Path(self.folder).name}/{self._name(row)}")

    def _name(self, row: int) -> str:
        return os.fsdecode(self.names[row].as_py())


def imagefolder_source(folder: str, image_size: int) -> Source:
    """Open the set; raise UsageError if the folder does not exist or has another layout."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    parts = {"train": Path(folder) / "train", "test": Path(folder) / "val"}
    classes = _classes(parts["train"])
    foreign = sorted(_classes(parts["test"]).keys() - classes.keys())
    if foreign:
        raise UsageError(f"{str(parts['test'])!r} has a class {foreign[0]!r} that {str(parts['train'])!r} lacks")
    samples = {}
    for part, path in parts.items():
        is_image = partial(_is_image, len(str(path)), IMG_EXTENSIONS)
        samples[part] = make_dataset(path, classes, is_valid_file=is_image, allow_empty=True)
    files = {part: ImageFiles.below(parts[part], [path for path, _ in pairs]) for part, pairs in samples.items()}
    shape = (3, image_size, image_size)
    transform = partial(_resize_and_crop, size=image_size)

    def read(
        part: str, rows: torch.Tensor, advance: AdvanceFn = lambda count: None
    ) -> tuple[torch.Tensor, dict[int, str]]:
        out = torch.empty((len(rows), *shape), dtype=torch.uint8)
        row_list = rows.tolist()
        errors = decode_all(out, range(len(rows)), lambda index: files[part].read(row_list[index]), transform, advance)
        return out, {index: f"{files[part].name(row_list[index])} {error}" for index, error in errors.items()}

    def stream(rows: torch.Tensor, manifest: Manifest) -> StreamedImages:
        content = content_sha256(manifest, "train")
        return StreamedImages(
            encoded=files["train"], rows=rows, image_shape=shape, transform=transform, content=content
        )

    return Source(
        labels={
            part: torch.tensor([label for _, label in pairs], dtype=torch.int64) for part, pairs in samples.items()
        },
        classes=len(classes),
        image_bytes=3 * image_size**2,
        read=read,
        stream=stream,
    )


def _classes(path: Path) -> dict[str, int]:
    """Return the number of each class folder by its name, in sorted order."""
    if not path.is_dir():
        raise UsageError(f"the folder {str(path)!r} does not exist; {_LAYOUT}")
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UsageError(f"the folder {str(path)!r} has no class folders; {_LAYOUT}")
    return {name: number for number, name in enumerate(names)}


def _is_image(root_length: int, extensions: tuple[str, ...], path: str) -> bool:
    """Return whether a file has an image's extension and neither it nor a folder below the root is hidden."""
    return path.lower().endswith(extensions) and f"{os.sep}." not in path[root_length:]


def _resize_and_crop(image: torch.Tensor, size: int) -> torch.Tensor:
    """Return the middle of an image (3, H, W) as (3, size, size)."""
    from torchvision.transforms.v2 import functional as transforms

    return transforms.center_crop(transforms.resize(image, [round(size * 8 / 7)], antialias=True), [size, size])
