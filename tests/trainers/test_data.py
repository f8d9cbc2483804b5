import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from layers.errors import OvertoneError, UsageError
from trainers import data as data_module
from trainers.data import Data, DataSpec, Split, load_data
from trainers.sources import Source, digits_source

SHARED = Path(os.environ.get("OVERTONE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
CIFAR_JPEG = SHARED / "cifar10-jpeg"
needs_cifar = pytest.mark.skipif(
    not CIFAR_JPEG.is_dir(), reason=f"no {CIFAR_JPEG}; OVERTONE_TEST_DATA names the folder that has cifar10-jpeg"
)


def numbered_source(train: int, test: int, classes: int = 5, seed: int = 0) -> Source:
    """Images that carry their own part and row in their first pixels, so that a split shows where it came from."""
    generator = torch.Generator().manual_seed(seed)
    labels = {"train": torch.randint(classes, (train,), generator=generator)}
    labels["test"] = torch.randint(classes, (test,), generator=generator)

    def read(part: str, rows: torch.Tensor) -> torch.Tensor:
        images = torch.zeros(len(rows), 3, 2, 2, dtype=torch.uint8)
        images[:, 0, 0, 0], images[:, 0, 0, 1] = rows // 256, rows % 256
        images[:, 1] = 1 if part == "train" else 2
        return images

    return Source(labels=labels, classes=classes, image_bytes=12, read=read)


@pytest.fixture
def numbered(monkeypatch):
    source = numbered_source(1000, 300)
    monkeypatch.setattr(data_module, "cifar10_source", lambda folder: source)
    return source


def rows(split: Split) -> list[tuple[int, int]]:
    """(part, row) of each image of a numbered source."""
    first = split.images[:, 0, 0].long()
    return list(zip(split.images[:, 1, 0, 0].tolist(), (first[:, 0] * 256 + first[:, 1]).tolist(), strict=True))


def load(**spec) -> Data:
    return load_data(DataSpec(name="cifar10", **spec))


def test_validation_from_train_holds_a_tenth_out_and_leaves_the_test_part_whole(numbered):
    data = load()
    assert [len(split) for split in (data.train, data.val, data.test)] == [900, 100, 300]
    assert sorted(rows(data.train) + rows(data.val)) == [(1, row) for row in range(1000)]
    assert sorted(rows(data.test)) == [(2, row) for row in range(300)]


def test_validation_from_test_halves_the_test_part_and_leaves_training_whole(numbered):
    data = load(validation_from="test")
    assert [len(split) for split in (data.train, data.val, data.test)] == [1000, 150, 150]
    assert sorted(rows(data.train)) == [(1, row) for row in range(1000)]
    assert sorted(rows(data.val) + rows(data.test)) == [(2, row) for row in range(300)]


@pytest.mark.parametrize("source", ["train", "test"])
def test_labels_stay_with_their_images(numbered, source):
    data = load(validation_from=source)
    for split in (data.train, data.val, data.test):
        parts = {1: numbered.labels["train"], 2: numbered.labels["test"]}
        assert split.labels.tolist() == [int(parts[part][row]) for part, row in rows(split)]


def test_a_training_limit_takes_the_first_of_the_shuffle_and_nothing_else(numbered):
    whole, some, fewer = load(), load(train_limit=50), load(train_limit=20)
    assert rows(some.train) == rows(whole.train)[:50]
    assert rows(fewer.train) == rows(whole.train)[:20]
    assert rows(some.val) == rows(whole.val)
    assert rows(some.test) == rows(whole.test)
    assert len(load(train_limit=10_000).train) == 900


def test_the_seed_decides_every_split(numbered):
    one, same, other = load(seed=1), load(seed=1), load(seed=2)
    assert rows(one.train) == rows(same.train)
    assert one.fingerprint == same.fingerprint
    assert set(rows(one.val)) != set(rows(other.val))
    assert one.fingerprint != other.fingerprint


def test_splits_are_class_balanced(numbered):
    data = load()
    for split in (data.train, data.val):
        share = numbered.labels["train"].bincount() / 1000
        assert (split.labels.bincount(minlength=5) - share * len(split)).abs().max() <= 1.5


def test_digits_are_split_60_20_20():
    data = load_data(DataSpec())
    assert [len(split) for split in (data.train, data.val, data.test)] == [1078, 360, 359]
    images = torch.cat([data.train.images, data.val.images, data.test.images])
    assert len(images) == 1797
    assert (data.channels, data.image_size, data.classes, data.augment) == (1, 8, 10, "shift")
    source = digits_source(torch.Generator().manual_seed(0))
    everything = torch.cat([source.read(part, torch.arange(len(source.labels[part]))) for part in source.labels])
    assert sorted(x.numpy().tobytes() for x in images) == sorted(x.numpy().tobytes() for x in everything)


@pytest.mark.parametrize("changed", ["images", "labels", "mean", "augment", "moved"])
def test_the_fingerprint_notices_every_change(numbered, changed):
    data = load()
    images, labels = data.val.images.clone(), data.val.labels.clone()
    other = data
    if changed == "images":
        images[3, 2, 1, 1] ^= 1
    elif changed == "labels":
        labels[5] = (labels[5] + 1) % 5
    elif changed == "mean":
        other = replace(data, mean=(0.5, 0.5, 0.5))
    elif changed == "augment":
        other = replace(data, augment="none")
    else:
        other = replace(data, train=data.test, test=data.train)
    other = replace(other, val=Split(images=images, labels=labels))
    assert other.fingerprint != data.fingerprint


def test_data_pickle_with_their_fingerprint(numbered):
    data = load()
    copy = pickle.loads(pickle.dumps(data))
    assert "fingerprint" in vars(copy)
    assert replace(copy, classes=5).fingerprint == data.fingerprint
    assert torch.equal(copy.val.images, data.val.images)


def source_with(**changes) -> Source:
    return replace(numbered_source(40, 20), **changes)


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (source_with(classes=4), r"train labels of 'cifar10' are out of range \(one is 4\); allowed are 0 to 3"),
        (
            source_with(labels={"train": torch.zeros(40).long(), "test": torch.tensor([0, -1, -1])}),
            r"2 test labels of 'cifar10' are out of range \(one is -1\); allowed are 0 to 4",
        ),
        (source_with(classes=1), "dataset 'cifar10' has 1 classes; a classifier needs 2 or more"),
        (numbered_source(40, 0), r"the test split of 'cifar10' has 0 images; it must have at least 1"),
        (numbered_source(2, 10), r"the val split of 'cifar10' has 0 images; it must have at least 1"),
        (numbered_source(1, 10), r"the train split of 'cifar10' has 1 images; it must have at least 2"),
    ],
)
def test_labels_and_splits_that_cannot_be_used(monkeypatch, source, match):
    monkeypatch.setattr(data_module, "cifar10_source", lambda folder: source)
    with pytest.raises(OvertoneError, match=match):
        load()


def test_a_set_that_does_not_fit_is_refused_before_it_is_read(monkeypatch):
    def read(part: str, rows: torch.Tensor) -> torch.Tensor:
        raise AssertionError("nothing must be decoded")

    monkeypatch.setattr(data_module, "cifar10_source", lambda folder: source_with(image_bytes=10**15, read=read))
    with pytest.raises(OvertoneError, match="--train-limit keeps fewer"):
        load()


def test_data_dir_reaches_torchvision(monkeypatch):
    seen = []
    monkeypatch.setattr(data_module, "cifar10_source", lambda folder: seen.append(folder) or numbered_source(40, 20))
    load(data_dir="elsewhere")
    assert seen == ["elsewhere"]


def test_folders_reach_their_readers():
    with pytest.raises(UsageError, match="'/no/such' of dataset 'parquet:/no/such' does not exist"):
        load_data(DataSpec(name="parquet:/no/such"))
    with pytest.raises(UsageError, match="'/no/such/train' does not exist"):
        load_data(DataSpec(name="imagefolder:/no/such"))


@pytest.mark.parametrize(("asked", "side"), [(None, 224), (10, 10)])
def test_image_size_reaches_the_folder_reader(monkeypatch, asked, side):
    seen = []
    source = numbered_source(40, 20)
    monkeypatch.setattr(data_module, "imagefolder_source", lambda folder, size: seen.append((folder, size)) or source)
    load_data(DataSpec(name="imagefolder:x", image_size=asked))
    assert seen == [("x", side)]


def test_all_grey_colour_images_become_one_plane_that_is_never_mirrored(monkeypatch):
    def read(part: str, rows: torch.Tensor) -> torch.Tensor:
        return rows.to(torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 2, 2)

    monkeypatch.setattr(data_module, "cifar10_source", lambda folder: source_with(read=read))
    data = load()
    assert data.train.images.shape == (36, 1, 2, 2)
    assert data.augment == "shift"
    assert (data.mean, data.std) == (pytest.approx((0.449,)), pytest.approx((0.226,)))


def test_one_coloured_image_keeps_three_planes(monkeypatch):
    def read(part: str, rows: torch.Tensor) -> torch.Tensor:
        images = rows.to(torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 2, 2)
        images[rows == 7, 2, 1, 1] = 99
        return images

    monkeypatch.setattr(data_module, "cifar10_source", lambda folder: source_with(read=read))
    assert load().channels == 3


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2).long()),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2).long()),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3).long()),
    ],
)
def test_a_split_takes_bytes_with_a_label_each(images, labels):
    with pytest.raises(UsageError, match=r"must be uint8 \(n, C, H, W\)"):
        Split(images=images, labels=labels)


@needs_cifar
def test_cifar10_in_parquet_loads_a_few_images_of_the_right_kind():
    data = load_data(DataSpec(name=f"parquet:{CIFAR_JPEG}", train_limit=100, validation_from="test"))
    assert data.train.images.shape == (100, 3, 32, 32)
    assert [len(data.val), len(data.test)] == [5000, 5000]
    assert data.val.labels.bincount().tolist() == [500] * 10
    assert (data.classes, data.augment) == (10, "crop-flip")
    scaled = data.test.images.float() / 255
    assert scaled.mean((0, 2, 3)).tolist() == pytest.approx([0.49, 0.48, 0.45], abs=0.02)  # CIFAR-10's known means
