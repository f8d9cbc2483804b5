import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

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
