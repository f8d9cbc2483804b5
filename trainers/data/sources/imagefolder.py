"""Images in ImageNet's folder layout: DIR/train/<class>/*, and DIR/val/<class>/* for the test part.

Each is resized so that its shorter side is 8/7 of the required size (256 for 224, as for torchvision's published
accuracies), and its center is kept. As torchvision's reader does, images are not turned by their EXIF orientation.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyarrow as pa
import torch
from PIL import Image

from layers.errors import UsageError
from trainers.data.decode import AdvanceFn, decode_all
from trainers.data.manifest import Manifest, content_sha256, names_below
from trainers.data.resize import ResizeAndCrop
from trainers.data.sources.source import Source
from trainers.data.stream import StreamedImages

__all__ = ["ImageFiles", "imagefolder_source"]

_NAMED = 3
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


def imagefolder_source(
    folder: str, image_size: int, resize_size: int | None = None, interpolation: str | None = None
) -> Source:
    """Open the set; raise UsageError if the folder does not exist, has another layout, or has a class without images.

    What is left out is named: files that Pillow does not read or that lie in no class's folder, and hidden images.
    """
    root = Path(folder)
    layouts = {part: _layout(root, name) for part, name in (("train", "train"), ("test", "val"))}
    classes = {name: number for number, name in enumerate(layouts["train"].classes)}
    foreign = sorted(set(layouts["test"].classes) - classes.keys())
    if foreign:
        raise UsageError(f"{str(root / 'val')!r} has a class {foreign[0]!r} that {str(root / 'train')!r} lacks")
    for layout in layouts.values():
        _check_filled(layout)
    names = {
        part: [name for label in layout.classes for name in layout.images[label]] for part, layout in layouts.items()
    }
    files = {
        part: ImageFiles.below(layout.folder, [str(root / name) for name in names[part]])
        for part, layout in layouts.items()
    }
    shape = (3, image_size, image_size)
    transform = ResizeAndCrop.usual(image_size, resize_size, interpolation)

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
            part: torch.tensor([classes[name.split("/")[1]] for name in found], dtype=torch.int64)
            for part, found in names.items()
        },
        classes=len(classes),
        image_bytes=3 * image_size**2,
        read=read,
        stream=stream,
        warnings=tuple(_warnings(folder, layouts["train"], layouts["test"])),
    )


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """What is below `DIR/train` or `DIR/val`, by names relative to DIR."""

    folder: Path
    images: dict[str, list[str]]
    """Of each class, in order."""
    passed_over: list[str]

    @property
    def classes(self) -> list[str]:
        """Names of the class folders in sorted order."""
        return sorted(self.images)


def _layout(root: Path, part: str) -> _Layout:
    path = root / part
    if not path.is_dir():
        raise UsageError(f"the folder {str(path)!r} does not exist; {_LAYOUT}")
    names = names_below(root, part)
    images: dict[str, list[str]] = {
        name.split("/")[1]: [] for name in names if name.count("/") == 2 and name[-1] == "/" and not _is_hidden(name)
    }
    if not images:
        raise UsageError(f"the folder {str(path)!r} has no class folders; {_LAYOUT}")
    passed_over = []
    for name in names:
        if name[-1] == "/":
            continue
        is_image = name.lower().endswith(_extensions())
        if is_image and name.count("/") > 1 and not _is_hidden(name):
            images[name.split("/")[1]].append(name)
        elif is_image or not _is_hidden(name):
            passed_over.append(name)
    for found in images.values():
        found.sort(key=os.path.split)  # torchvision's order
    return _Layout(folder=path, images=images, passed_over=sorted(passed_over))


def _is_hidden(name: str) -> bool:
    return "/." in name


def _check_filled(layout: _Layout) -> None:
    """Raise UsageError for a class without images, as torchvision does."""
    for label in layout.classes:
        if not layout.images[label]:
            start = f"{layout.folder.name}/{label}/"
            endings = {
                os.path.splitext(name)[1]
                for name in layout.passed_over
                if name.startswith(start) and not _is_hidden(name)
            } - {""}
            found = f"Pillow reads no {', '.join(sorted(endings))}" if endings else "it has none"
            raise UsageError(f"the class folder {str(layout.folder / label)!r} must have images: {found}")


@cache
def _extensions() -> tuple[str, ...]:
    """Return the extensions of all formats that Pillow decodes by itself, in small letters."""
    Image.init()
    return tuple(
        extension
        for extension, format in Image.registered_extensions().items()
        if format in Image.OPEN and format not in _UNDECODED
    )


_UNDECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats that Pillow only recognizes, or decodes by programs that are mostly not there."""


def _warnings(folder: str, train: _Layout, val: _Layout) -> Iterator[str]:
    """Yield a sentence for each kind of thing that is not read."""
    passed_over = train.passed_over + val.passed_over
    if passed_over:
        named = ", ".join(map(repr, passed_over[:_NAMED])) + (", ..." if len(passed_over) > _NAMED else "")
        files = "1 file" if len(passed_over) == 1 else f"{len(passed_over)} files"
        yield f"{files} of 'imagefolder:{folder}' passed over, as no image that Pillow reads or in no class: {named}"
    absent = sorted(set(train.classes) - set(val.classes))
    if absent:
        named = ", ".join(map(repr, absent[:_NAMED])) + (", ..." if len(absent) > _NAMED else "")
        yield f"{str(val.folder)!r} has no images of {named}, which {str(train.folder)!r} has"
    if (Path(folder) / "test").is_dir():
        yield f"{str(Path(folder) / 'test')!r} is not read: the test images are those of {str(val.folder)!r}"
