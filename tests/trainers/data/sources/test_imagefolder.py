import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision import datasets, transforms

from layers.errors import UsageError
from trainers.data.sources.imagefolder import imagefolder_source


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Smooth enough that two resizers agree, with different content at each end."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    sizes = {"train/cat/a.png": (40, 30), "train/cat/b.png": (20, 60), "train/dog/c.png": (33, 33)}
    for seed, (name, size) in enumerate({**sizes, "val/dog/d.png": (50, 20)}.items()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed, *size).save(tmp_path / name)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    return tmp_path


def test_classes_are_folders_in_sorted_order(folder):
    source = imagefolder_source(str(folder), 14)
    assert source.labels["train"].tolist() == [0, 0, 1]
    assert source.labels["test"].tolist() == [1]
    assert (source.classes, source.image_bytes) == (2, 3 * 14 * 14)


def test_hidden_files_and_folders_are_passed_over(folder):
    for name in ("train/.ipynb_checkpoints/x.png", "val/.cache/x.png", "train/cat/.thumbs/x.png"):
        (folder / name).parent.mkdir()
        picture(9, 20, 20).save(folder / name)
    (folder / "train" / "dog" / "._c.png").write_bytes(b"what macOS leaves on foreign disks")
    source = imagefolder_source(str(folder), 14)
    assert (source.classes, source.labels["train"].tolist(), source.labels["test"].tolist()) == (2, [0, 0, 1], [1])
    (folder / "train" / "cat" / "e.PNG").write_bytes((folder / "train" / "cat" / "a.png").read_bytes())
    assert imagefolder_source(str(folder), 14).labels["train"].tolist() == [0, 0, 0, 1]


def test_images_are_torchvisions_resize_and_centre_crop(folder):
    images, faults = imagefolder_source(str(folder), 14).read("train", torch.tensor([2, 0, 1]))
    assert faults == {}
    usual = transforms.Compose([transforms.Resize(16), transforms.CenterCrop(14), transforms.PILToTensor()])
    for image, name in zip(images, ("dog/c.png", "cat/a.png", "cat/b.png"), strict=True):
        expected = usual(Image.open(folder / "train" / name))
        assert (image.int() - expected.int()).abs().max() <= 2  # Pillow rounds between its two passes


def test_faulty_images_are_named_at_their_places(folder):
    (folder / "train" / "dog" / "c.png").write_bytes(b"rubbish")
    (folder / "train" / "cat" / "b.png").write_bytes(b"")
    images, faults = imagefolder_source(str(folder), 14).read("train", torch.tensor([2, 0, 1]))
    assert faults == {0: "'train/dog/c.png' cannot be decoded", 2: "'train/cat/b.png' is empty"}
    alone, _ = imagefolder_source(str(folder), 14).read("train", torch.tensor([0]))
    assert torch.equal(images[1], alone[0])


def test_a_missing_or_empty_part_is_wrong_use(folder, tmp_path):
    with pytest.raises(UsageError, match="folder '/no/such/train' does not exist; an imagefolder has train/CLASS"):
        imagefolder_source("/no/such", 14)
    (folder / "val" / "dog" / "d.png").unlink()
    (folder / "val" / "dog").rmdir()
    with pytest.raises(UsageError, match="val' has no class folders"):
        imagefolder_source(str(folder), 14)


def test_a_class_that_training_has_not_is_wrong_use(folder):
    (folder / "val" / "emu").mkdir()
    with pytest.raises(UsageError, match=r"val' has a class 'emu' that .*train' lacks"):
        imagefolder_source(str(folder), 14)


SAVED = {
    "jpg": "JPEG",
    "jpe": "JPEG",
    "JFIF": "JPEG",
    "jfif": "JPEG",
    "png": "PNG",
    "apng": "PNG",
    "gif": "GIF",
    "bmp": "BMP",
    "dib": "DIB",
    "webp": "WEBP",
    "avif": "AVIF",
    "jp2": "JPEG2000",
    "tga": "TGA",
    "ppm": "PPM",
    "pnm": "PPM",
    "tif": "TIFF",
    "pcx": "PCX",
    "sgi": "SGI",
    "ico": "ICO",
    "dds": "DDS",
    "qoi": "QOI",
}


def test_files_of_every_extension_that_pillow_reads_are_images(folder, rng: random.Random):
    for extension, format in rng.sample(sorted(SAVED.items()), 8):
        picture(3, 20, 20).save(folder / "train" / "dog" / f"x.{extension}", format)
        source = imagefolder_source(str(folder), 14)
        assert source.labels["train"].tolist() == [0, 0, 1, 1], extension
        assert source.read("train", torch.arange(4))[1] == {}, extension
        (folder / "train" / "dog" / f"x.{extension}").unlink()


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], "it has none"),
        (["notes.txt", "b.heic", "deep/c.TXT"], r"Pillow reads no \.TXT, \.heic, \.txt"),
        ([".hidden.png"], "it has none"),
        (["plain"], "it has none"),
    ],
)
@pytest.mark.parametrize("part", ["train", "val"])
def test_a_class_without_images_is_refused_by_name_as_torchvision_does(folder, files, reason, part):
    for name in ("train/bee/1.png", "val/bee/1.png"):
        (folder / name).parent.mkdir()
        picture(1, 20, 20).save(folder / name)
    assert imagefolder_source(str(folder), 14).classes == 3
    empty = folder / part / "bee"
    (empty / "1.png").unlink()
    for name in files:
        (empty / name).parent.mkdir(exist_ok=True)
        (empty / name).write_bytes(b"x")
    with pytest.raises(UsageError, match=rf"^the class folder '{re.escape(str(empty))}' must have images: {reason}$"):
        imagefolder_source(str(folder), 14)
    with pytest.raises(FileNotFoundError, match=r"Found no valid file for the classes bee"):
        datasets.ImageFolder(str(folder / part), is_valid_file=lambda path: "/." not in path and path.endswith(".png"))


def test_what_is_passed_over_is_named(folder):
    (folder / "train" / "cat" / "notes.txt").unlink()
    assert imagefolder_source(str(folder), 14).warnings == (
        f"'{folder}/val' has no images of 'cat', which '{folder}/train' has",
    )
    image = (folder / "train" / "cat" / "a.png").read_bytes()
    for name in ("train/loose.png", "train/.cache/x.png", "val/dog/a.heic", "train/cat/.DS_Store", "test/dog/x.png"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(image)
    source = imagefolder_source(str(folder), 14)
    assert (source.labels["train"].tolist(), source.labels["test"].tolist()) == ([0, 0, 1], [1])
    assert source.warnings == (
        f"3 files of 'imagefolder:{folder}' passed over, as no image that Pillow reads or in no class: "
        "'train/.cache/x.png', 'train/loose.png', 'val/dog/a.heic'",
        f"'{folder}/val' has no images of 'cat', which '{folder}/train' has",
        f"'{folder}/test' is not read: the test images are those of '{folder}/val'",
    )


def test_links_are_followed_unless_they_have_no_end(folder, tmp_path):
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    picture(5, 20, 20).save(tmp_path / "elsewhere" / "deep" / "z.png")
    (folder / "train" / "emu").symlink_to(tmp_path / "elsewhere")
    assert imagefolder_source(str(folder), 14).labels["train"].tolist() == [0, 0, 1, 2]
    for target, name in ((folder / "train", "cat/up"), (folder / "train" / "cat", "cat/self"), (folder, "dog/root")):
        link = folder / "train" / name
        link.symlink_to(target)
        with pytest.raises(
            UsageError, match=rf"^the folder '{folder}/train/.*' must not be a link to '.*', which holds it$"
        ):
            imagefolder_source(str(folder), 14)
        link.unlink()


def test_files_are_in_torchvisions_order(tmp_path, rng: random.Random):
    names = [f"{''.join(rng.choices('ab-Z/', k=4)).strip('/').replace('//', '/') or 'q'}{n}.png" for n in range(30)]
    for part in ("train", "val"):
        for name in names:
            path = tmp_path / part / rng.choice("xyz") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        for label in "xyz":
            (tmp_path / part / label).mkdir(exist_ok=True)
            (tmp_path / part / label / "0.png").touch()
    source = imagefolder_source(str(tmp_path), 8)
    for part, root in (("train", "train"), ("test", "val")):
        expected = datasets.ImageFolder(str(tmp_path / root)).samples
        assert source.labels[part].tolist() == [label for _, label in expected]
        _, faults = source.read(part, torch.arange(len(expected)))  # all are empty, and so named
        found = [faults[index].split("'")[1] for index in range(len(expected))]
        assert found == [str(Path(path).relative_to(tmp_path)) for path, _ in expected]


def test_images_are_not_turned_as_torchvision_does_not(folder):
    path = folder / "train" / "dog" / "c.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(2, 20, 20).save(path.with_suffix(".jpg"), exif=exif, quality=95)
    path.unlink()
    (image,), faults = imagefolder_source(str(folder), 16, 16).read("train", torch.tensor([2]))
    assert faults == {}
    read, _ = datasets.ImageFolder(str(folder / "train"))[2]
    usual = transforms.Compose([transforms.Resize(16), transforms.PILToTensor()])
    assert (image.int() - usual(read).int()).abs().max() <= 2
    assert (image.int() - usual(ImageOps.exif_transpose(Image.open(path.with_suffix(".jpg")))).int()).abs().max() > 9


def test_the_resize_is_the_one_asked_for(folder):
    images, _ = imagefolder_source(str(folder), 14, 20, "bicubic").read("train", torch.tensor([1]))
    how = transforms.Resize(20, transforms.InterpolationMode.BICUBIC)
    usual = transforms.Compose([how, transforms.CenterCrop(14), transforms.PILToTensor()])
    assert (images[0].int() - usual(Image.open(folder / "train" / "cat" / "b.png")).int()).abs().max() <= 2
