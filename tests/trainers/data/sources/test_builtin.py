import hashlib
import pickle
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10

from layers.errors import OvertoneError
from trainers.data.sources.builtin import cifar10_source, digits_source


def all_digits(seed: int = 0):
    source = digits_source(torch.Generator().manual_seed(seed))
    parts = {part: source.read(part, torch.arange(len(labels)))[0] for part, labels in source.labels.items()}
    return source, parts


def test_the_digits_are_scikit_learns_scaled_to_a_byte():
    source, parts = all_digits()
    pixels, labels = load_digits(return_X_y=True)
    expected = {(np.rint(x / 16 * 255).astype(np.uint8).tobytes(), int(y)) for x, y in zip(pixels, labels, strict=True)}
    found = [
        (image.numpy().tobytes(), int(label))
        for part in parts
        for image, label in zip(parts[part], source.labels[part], strict=True)
    ]
    assert len(found) == 1797
    assert set(found) == expected


def test_the_stated_mean_and_deviation_are_those_of_all_digits():
    source, parts = all_digits()
    scaled = torch.cat(list(parts.values())).double() / 255
    assert source.mean == pytest.approx([scaled.mean().item()], abs=5e-5)
    assert source.std == pytest.approx([scaled.std().item()], abs=1e-4)


def test_a_fifth_of_the_digits_is_for_testing():
    source, _ = all_digits()
    assert {part: len(labels) for part, labels in source.labels.items()} == {"train": 1438, "test": 359}
    assert source.image_bytes == 64


class FakeCifar:
    """Stands for torchvision's class: the same arrays, no download."""

    def __init__(self, root, train, download=False):
        rng = np.random.default_rng(int(train))
        self.data = rng.integers(0, 256, (20 if train else 10, 32, 32, 3), dtype=np.uint8)
        self.targets = rng.integers(0, 10, len(self.data)).tolist()
        self.seen = SimpleNamespace(root=root, download=download)


def test_cifar10_is_torchvisions_channels_first(monkeypatch):
    monkeypatch.setattr("torchvision.datasets.CIFAR10", FakeCifar)
    source = cifar10_source("somewhere")
    for part, train in (("train", True), ("test", False)):
        fake = FakeCifar("", train)
        rows = torch.randperm(len(fake.data), generator=torch.Generator().manual_seed(1))[:7]
        images, faults = source.read(part, rows)
        assert torch.equal(images, torch.from_numpy(fake.data)[rows].permute(0, 3, 1, 2))
        assert faults == {}
        assert source.labels[part].tolist() == fake.targets


@pytest.mark.parametrize("error", [urllib.error.URLError("no network"), RuntimeError("Dataset not found\nmore")])
def test_cifar10_that_cannot_be_had_is_one_sentence(monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr("torchvision.datasets.CIFAR10", refuse)
    with pytest.raises(
        OvertoneError, match=r"CIFAR-10 is not in 'x' and cannot be downloaded \(.*\); --data-dir"
    ) as got:
        cifar10_source("x")
    assert "\n" not in str(got.value)


@pytest.mark.parametrize("end", [OSError("connection lost"), KeyboardInterrupt()])
def test_a_download_that_fails_leaves_no_folder_but_one_that_was_there(monkeypatch, tmp_path, end):
    class Failing:
        def __init__(self, root, **_):
            Path(root).mkdir(exist_ok=True)
            (Path(root) / "cifar-10-python.tar.gz").write_bytes(b"half of it")
            raise end

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Failing)
    with pytest.raises((OvertoneError, KeyboardInterrupt)):
        cifar10_source(str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises((OvertoneError, KeyboardInterrupt)):
        cifar10_source(str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_cifar10_is_read_from_the_publishers_files(monkeypatch, tmp_path):
    """torchvision's own reading, of ten images a file whose checksums are put in place of the publisher's."""
    rng, base = np.random.default_rng(0), tmp_path / CIFAR10.base_folder
    base.mkdir()

    def write(name, content):
        (base / name).write_bytes(pickle.dumps(content, protocol=2))
        return [name, hashlib.md5((base / name).read_bytes()).hexdigest()]

    pixels = rng.integers(0, 256, (6, 10, 3072), dtype=np.uint8)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    files = [write(name, {"data": batch, "labels": list(range(10))}) for name, batch in zip(names, pixels, strict=True)]
    monkeypatch.setattr(CIFAR10, "train_list", files[:5])
    monkeypatch.setattr(CIFAR10, "test_list", files[5:])
    name, md5 = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    source = cifar10_source(str(tmp_path))
    images, _ = source.read("train", torch.tensor([49, 0, 23]))
    expected = pixels[:5].reshape(50, 3, 32, 32)[[49, 0, 23]]
    assert torch.equal(images, torch.from_numpy(expected))
    assert source.labels["test"].tolist() == list(range(10))
    (base / "data_batch_3").write_bytes(b"another set")
    monkeypatch.setattr(CIFAR10, "download", lambda self: None)
    with pytest.raises(OvertoneError, match="not found or corrupted"):
        cifar10_source(str(tmp_path))
