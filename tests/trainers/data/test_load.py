import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from layers.errors import OvertoneError, OvertoneWarning, UsageError
from trainers.data import Data, DataSpec, Split, decode, load_data, stream
from trainers.data import load as data_module
from trainers.data.description import describe_images
from trainers.data.sources import imagefolder as imagefolder_module
from trainers.data.sources import parquet as parquet_module
from trainers.data.sources.builtin import digits_source
from trainers.data.sources.source import Source

SHARED = Path(os.environ.get("OVERTONE_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
CIFAR_JPEG = SHARED / "cifar10-jpeg"
needs_cifar = pytest.mark.skipif(
    not CIFAR_JPEG.is_dir(), reason=f"no {CIFAR_JPEG}; OVERTONE_TEST_DATA names the folder that has cifar10-jpeg"
)


def numbered_source(train: int, test: int, classes: int = 5, seed: int = 0, bad=()) -> Source:
    """Images that carry their own part and row in their first pixels, so that a split shows where it came from.

    Those in bad, by part and row, cannot be used.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = {"train": torch.randint(classes, (train,), generator=generator)}
    labels["test"] = torch.randint(classes, (test,), generator=generator)

    def read(part: str, rows: torch.Tensor, *_) -> tuple[torch.Tensor, dict[int, str]]:
        images = torch.zeros(len(rows), 3, 2, 2, dtype=torch.uint8)
        images[:, 0, 0, 0], images[:, 0, 0, 1] = rows // 256, rows % 256
        images[:, 1] = 1 if part == "train" else 2
        faults = {place: f"{row} is bad" for place, row in enumerate(rows.tolist()) if (part, row) in bad}
        images[list(faults)] = 255
        return images, faults

    return Source(labels=labels, classes=classes, image_bytes=12, read=read)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERTONE_CACHE", str(tmp_path / "cache"))


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
    data = load(val_from="test")
    assert [len(split) for split in (data.train, data.val, data.test)] == [1000, 150, 150]
    assert sorted(rows(data.train)) == [(1, row) for row in range(1000)]
    assert sorted(rows(data.val) + rows(data.test)) == [(2, row) for row in range(300)]


@pytest.mark.parametrize("source", ["train", "test"])
def test_labels_stay_with_their_images(numbered, source):
    data = load(val_from=source)
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
    everything = torch.cat([source.read(part, torch.arange(len(source.labels[part])))[0] for part in source.labels])
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
        (source_with(classes=4), r"train labels of 'cifar10' are out of range \(one is 4\); they must be 0 to 3"),
        (
            source_with(labels={"train": torch.zeros(40).long(), "test": torch.tensor([0, -1, -1])}),
            r"2 test labels of 'cifar10' are out of range \(one is -1\); they must be 0 to 4",
        ),
        (
            source_with(classes=1, labels={"train": torch.zeros(40).long(), "test": torch.zeros(20).long()}),
            "dataset 'cifar10' has 1 classes; a classifier needs 2 or more",
        ),
        (
            source_with(classes=0, labels={"train": torch.full((40,), -1), "test": torch.zeros(20).long()}),
            r"40 train labels of 'cifar10' are out of range \(one is -1\); they must be 0 to 1",
        ),
        (numbered_source(40, 0), r"the test split of 'cifar10' has 0 images; it must have at least 1"),
        (numbered_source(2, 10), r"the val split of 'cifar10' has 0 images; it must have at least 1"),
        (numbered_source(1, 10), r"the train split of 'cifar10' has 1 images; it must have at least 2"),
    ],
)
def test_labels_and_splits_that_cannot_be_used(monkeypatch, source, match):
    monkeypatch.setattr(data_module, "cifar10_source", lambda folder: source)
    with pytest.raises(OvertoneError, match=match):
        load()


def test_what_fits_passes_and_what_does_not_names_the_way_out(monkeypatch):
    monkeypatch.setattr(data_module, "available_bytes", lambda: 10_000)
    data_module._check_memory("set", 100, 100)
    with pytest.raises(OvertoneError, match=r"the 101 .* 'set' take .*; --stream decodes .*, --train-limit keeps"):
        data_module._check_memory("set", 101, 100)


def test_a_set_that_does_not_fit_is_refused_before_it_is_read(monkeypatch):
    def read(part: str, rows: torch.Tensor, *_) -> tuple[torch.Tensor, dict[int, str]]:
        raise AssertionError("nothing must be decoded")

    monkeypatch.setattr(data_module, "cifar10_source", lambda folder: source_with(image_bytes=10**15, read=read))
    with pytest.raises(OvertoneError, match="--train-limit keeps fewer"):
        load()


BAD = {("train", 7), ("train", 400), ("train", 999), ("test", 3), ("test", 299)}


def test_a_few_images_that_cannot_be_used_are_left_out_with_their_labels(monkeypatch, numbered, tmp_path):
    whole = load()
    monkeypatch.setenv("OVERTONE_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr(data_module, "cifar10_source", lambda folder: numbered_source(1000, 300, bad=BAD))
    with pytest.warns(OvertoneWarning) as told:
        data = load()
    for name, part in (("train", 1), ("val", 1), ("test", 2)):
        split, expected = getattr(data, name), getattr(whole, name)
        kept = [i for i, (_, row) in enumerate(rows(expected)) if ({1: "train", 2: "test"}[part], row) not in BAD]
        assert rows(split) == [rows(expected)[i] for i in kept]
        assert torch.equal(split.labels, expected.labels[kept])
    assert sum(len(split) for split in (data.train, data.val, data.test)) == 1295
    sentences = [str(warning.message) for warning in told]
    assert sentences == list(data.warnings)
    assert re.fullmatch(
        r"2 of 300 images of 'cifar10' cannot be used and are left out: \d+ is bad, \d+ is bad", sentences[-1]
    )
    assert data.fingerprint != whole.fingerprint


def test_one_image_in_a_hundred_is_the_limit_of_each_split(monkeypatch, tmp_path):
    bad = {("test", row) for row in range(3)}
    monkeypatch.setattr(data_module, "cifar10_source", lambda folder: numbered_source(1000, 300, bad=bad))
    with pytest.warns(OvertoneWarning, match="^3 of 300 images"):
        assert len(load().test) == 297
    bad.add(("test", 3))
    monkeypatch.setenv("OVERTONE_CACHE", str(tmp_path / "another"))
    with pytest.raises(
        OvertoneError, match=r"^4 of 300 images of 'cifar10' cannot be used: .*, \.\.\.; at most 1 % of a split may be"
    ):
        load()


def test_data_dir_reaches_torchvision(monkeypatch):
    seen = []
    monkeypatch.setattr(data_module, "cifar10_source", lambda folder: seen.append(folder) or numbered_source(40, 20))
    load(data_dir="elsewhere")
    assert seen == ["elsewhere"]


@pytest.mark.parametrize("kind", ["parquet", "imagefolder"])
def test_who_waits_is_told_how_many_images_are_decoded(kind, request):
    folder = request.getfixturevalue({"parquet": "parquet_set", "imagefolder": "image_folder"}[kind])
    spec, heard = DataSpec(name=f"{kind}:{folder}"), []
    data = load_data(spec, lambda done, total: heard.append((done, total)))
    assert heard[-1] == (sum(len(split) for split in (data.train, data.val, data.test)),) * 2
    assert [done for done, _ in heard] == sorted({done for done, _ in heard})
    load_data(spec, lambda *_: pytest.fail("nothing is decoded a second time"))


def test_folders_reach_their_readers():
    with pytest.raises(UsageError, match="'/no/such' of dataset 'parquet:/no/such' does not exist"):
        load_data(DataSpec(name="parquet:/no/such"))
    with pytest.raises(UsageError, match="'/no/such/train' does not exist"):
        load_data(DataSpec(name="imagefolder:/no/such"))


@pytest.mark.parametrize(("kind", "usual"), [("imagefolder", 224), ("parquet", None)])
def test_sizes_reach_the_reader_of_a_folder(monkeypatch, kind, usual):
    seen = []
    source = numbered_source(40, 20)
    monkeypatch.setattr(data_module, f"{kind}_source", lambda *given: seen.append(given) or source)
    load_data(DataSpec(name=f"{kind}:x"))
    load_data(DataSpec(name=f"{kind}:x", image_size=10, resize_size=12, interpolation="bicubic"))
    assert seen == [("x", usual, None, None), ("x", 10, 12, "bicubic")]


def test_all_grey_colour_images_become_one_plane_that_is_never_mirrored(monkeypatch):
    def read(part: str, rows: torch.Tensor, *_) -> tuple[torch.Tensor, dict[int, str]]:
        return rows.to(torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 2, 2), {}

    monkeypatch.setattr(data_module, "cifar10_source", lambda folder: source_with(read=read))
    data = load()
    assert data.train.images.shape == (36, 1, 2, 2)
    assert data.augment == "shift"
    assert (data.mean, data.std) == (pytest.approx((0.449,)), pytest.approx((0.226,)))


def test_one_coloured_image_keeps_three_planes(monkeypatch):
    def read(part: str, rows: torch.Tensor, *_) -> tuple[torch.Tensor, dict[int, str]]:
        images = rows.to(torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 2, 2)
        images[rows == 7, 2, 1, 1] = 99
        return images, {}

    monkeypatch.setattr(data_module, "cifar10_source", lambda folder: source_with(read=read))
    assert load().channels == 3


@pytest.fixture
def unread(monkeypatch):
    """Any decoding is a failure."""

    def refuse(*_):
        raise AssertionError("nothing must be decoded")

    for module in (decode, stream, parquet_module, imagefolder_module):
        for name in ("decode_one", "decode_at", "decode_all"):
            monkeypatch.setattr(module, name, refuse, raising=False)


@pytest.fixture
def streamed_spec(image_folder) -> DataSpec:
    return DataSpec(name=f"imagefolder:{image_folder}", image_size=7, val_from="test", stream=True)


def spoil_training(spec: DataSpec) -> None:
    for path in Path(spec.folder, "train").rglob("*.png"):
        path.write_bytes(b"rubbish")


def test_streamed_training_images_are_not_decoded_at_first(streamed_spec):
    spoil_training(streamed_spec)
    data = load_data(streamed_spec)
    assert [len(split) for split in (data.train, data.val, data.test)] == [120, 15, 15]
    with pytest.raises(
        OvertoneError, match=r"^'train/\w+/\d\d.png' cannot be decoded; without stream, unusable images are left out$"
    ):
        data.train.take(torch.tensor([3]))


def test_what_a_streamed_set_decodes_is_kept(streamed_spec, request, tmp_path):
    first = load_data(streamed_spec)
    (path,) = (tmp_path / "cache").glob("*.safetensors")
    assert path.stat().st_size < 30 * 3 * 7 * 7 + 4000
    request.getfixturevalue("unread")
    again = load_data(streamed_spec)
    assert again.fingerprint == first.fingerprint == replace(again).fingerprint
    assert torch.equal(again.val.images, first.val.images)
    assert torch.equal(again.train.labels, first.train.labels)
    assert again.train.images.identity == first.train.images.identity


def test_a_streamed_fingerprint_notices_a_file(streamed_spec, image_folder):
    before, path = load_data(streamed_spec), image_folder / "train" / "cat" / "03.png"
    os.utime(path, ns=(1, 1))
    assert load_data(streamed_spec).fingerprint == before.fingerprint
    path.write_bytes(path.read_bytes() + b" ")
    assert load_data(streamed_spec).fingerprint != before.fingerprint


def test_memory_is_asked_for_what_is_decoded_alone(streamed_spec, monkeypatch):
    asked = []
    monkeypatch.setattr(data_module, "_check_memory", lambda *given: asked.append(given))
    load_data(streamed_spec)
    load_data(replace(streamed_spec, stream=False))
    assert asked == [(streamed_spec.name, 30, 147), (streamed_spec.name, 150, 147)]


def test_streamed_grey_images_keep_three_planes(streamed_spec, image_folder):
    for path in image_folder.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    assert load_data(replace(streamed_spec, stream=False)).channels == 1
    data = load_data(streamed_spec)
    assert (data.channels, data.val.image_shape, data.augment) == (3, (3, 7, 7), "crop-flip")


def test_classes_without_enough_images_are_refused(tmp_path):
    for name in ("train/a", "val/a"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    name = f"imagefolder:{tmp_path}"
    with pytest.raises(OvertoneError, match="has 1 classes; a classifier"):
        load_data(DataSpec(name=name))
    (tmp_path / "train" / "b").mkdir()
    with pytest.raises(UsageError, match=r"the class folder '.*/train/b' must have images: it has none$"):
        load_data(DataSpec(name=name))


def test_a_folder_that_cannot_be_read_is_wrong_use():
    for kind in ("parquet", "imagefolder"):
        with pytest.raises(UsageError, match=r"^cannot read the folder 'xx.*': File name too long$"):
            load_data(DataSpec(name=f"{kind}:{'x' * 300}"))


@needs_cifar
def test_cifar10_in_parquet_loads_a_few_images_of_the_right_kind():
    data = load_data(DataSpec(name=f"parquet:{CIFAR_JPEG}", train_limit=100, val_from="test"))
    assert data.train.images.shape == (100, 3, 32, 32)
    assert [len(data.val), len(data.test)] == [5000, 5000]
    assert data.val.labels.bincount().tolist() == [500] * 10
    assert (data.classes, data.augment) == (10, "crop-flip")
    scaled = data.test.images.float() / 255
    assert scaled.mean((0, 2, 3)).tolist() == pytest.approx([0.49, 0.48, 0.45], abs=0.02)  # CIFAR-10's known means


def test_a_given_normalization_is_the_datas_and_tells_trials_apart(numbered, image_folder):
    name = f"imagefolder:{image_folder}"
    for kind in ({"name": "cifar10"}, {"name": name, "image_size": 8}, {"name": name, "image_size": 8, "stream": True}):
        plain = load_data(DataSpec(**kind))
        given = load_data(DataSpec(**kind, mean=(0.5, 0.4, 0.3), std=1, augment="none"))
        assert (given.mean, given.std, given.augment) == ((0.5, 0.4, 0.3), (1.0, 1.0, 1.0), "none")
        assert load_data(DataSpec(**kind, mean=plain.mean, std=plain.std)).fingerprint == plain.fingerprint
        others = [{"mean": 0.5, "std": 1}, {"mean": 0.5, "std": 2}, {"mean": 0.4, "std": 1}, {"augment": "none"}]
        prints = [plain.fingerprint, given.fingerprint, *(load_data(DataSpec(**kind, **o)).fingerprint for o in others)]
        assert len(set(prints)) == 6
        assert load_data(DataSpec(**kind, mean=(0.5, 0.4, 0.3), std=1, augment="none")).fingerprint == given.fingerprint
        assert torch.equal(given.val.images, plain.val.images)
        assert torch.allclose(given.normalize(given.val.images)[:, 1], given.val.images[:, 1] / 255 - 0.4, atol=1e-6)
    with pytest.raises(UsageError, match=r"mean \(=\[0.5, 0.5\]\) must be one number, or one for each of 3 channels"):
        load(mean=(0.5, 0.5), std=1)


def test_a_normalization_does_not_decode_anew(image_folder, monkeypatch):
    spec = DataSpec(name=f"imagefolder:{image_folder}", image_size=7)
    load_data(spec)
    monkeypatch.setattr(data_module, "imagefolder_source", lambda *_: pytest.fail("it was decoded"))
    assert load_data(replace(spec, mean=0.0, std=1.0)).mean == (0.0, 0.0, 0.0)
    assert load_data(spec).mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("streamed", [False, True])
def test_color_becomes_pillows_gray_where_one_channel_is_asked_for(image_folder, streamed):
    spec = DataSpec(name=f"imagefolder:{image_folder}", image_size=7, stream=streamed)
    color, gray = load_data(spec), load_data(replace(spec, channels=1))
    assert (gray.channels, gray.val.image_shape, gray.augment) == (1, (1, 7, 7), "crop-flip")
    assert (gray.mean, gray.std) == (pytest.approx((0.449,)), pytest.approx((0.226,)))
    assert gray.fingerprint != color.fingerprint
    for part in ("train", "val", "test"):
        rows = torch.arange(12)
        found, original = (getattr(data, part).take(rows) for data in (gray, color))
        expected = [np.asarray(Image.fromarray(o.permute(1, 2, 0).numpy()).convert("L")) for o in original]
        assert found[:, 0].tolist() == np.stack(expected).tolist()


def test_gray_images_are_color_for_a_network_that_takes_it(tmp_path, np_rng):
    for part, count in (("train", 30), ("val", 6)):
        for number in range(count):
            folder = tmp_path / part / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np_rng.integers(0, 256, (7, 7), dtype=np.uint8)).save(folder / f"{number}.png")
    spec = DataSpec(name=f"imagefolder:{tmp_path}", image_size=7)
    one, three = load_data(spec), load_data(replace(spec, channels=3))
    assert (one.channels, three.channels) == (1, 3)
    assert torch.equal(one.val.images.expand(-1, 3, -1, -1), three.val.images)
    assert (three.mean, three.augment) == ((0.485, 0.456, 0.406), "shift")
    assert torch.equal(load_data(replace(spec, channels=1)).val.images, one.val.images)
    digits = load_data(DataSpec(channels=3))
    assert (digits.train.image_shape, digits.mean) == ((3, 8, 8), (0.3053,) * 3)
    assert torch.equal(digits.train.take(torch.arange(5)), load_data(DataSpec()).train.images[:5].expand(-1, 3, -1, -1))


def test_without_labeled_test_images_some_training_images_are_tested_on(monkeypatch):
    source = numbered_source(1000, 300)
    del source.labels["test"]
    monkeypatch.setattr(data_module, "cifar10_source", lambda folder: source)
    data = load()
    assert [len(split) for split in (data.train, data.val, data.test)] == [810, 90, 100]
    assert sorted(rows(data.train) + rows(data.val) + rows(data.test)) == [(1, row) for row in range(1000)]


def test_published_validation_images_are_used_where_they_are_asked_for(monkeypatch):
    source = numbered_source(300, 40)
    source.labels["validation"] = torch.arange(50) % 5
    monkeypatch.setattr(data_module, "parquet_source", lambda *_: source)
    with pytest.warns(
        OvertoneWarning, match=r"the validation images of 'parquet:x' are not used; --val-from validation"
    ):
        assert len(load_data(DataSpec(name="parquet:x")).val) == 30
    data = load_data(DataSpec(name="parquet:x", val_from="validation"))
    assert [len(split) for split in (data.train, data.val, data.test)] == [300, 50, 40]
    del source.labels["validation"]
    with pytest.raises(UsageError, match=r"val_from \(='validation'\) must be train or test: 'parquet:x' has no valid"):
        load_data(DataSpec(name="parquet:x", val_from="validation", seed=1))


def test_labels_with_gaps_are_told(monkeypatch):
    source = numbered_source(100, 20, classes=3)
    for labels in source.labels.values():
        labels += 1
    source = replace(source, classes=6)
    monkeypatch.setattr(data_module, "cifar10_source", lambda folder: source)
    with pytest.warns(
        OvertoneWarning, match=r"^no training image of 'cifar10' has the label 0, 4, 5, though labels are 0 to"
    ):
        assert load().classes == 6


def test_what_a_folder_passes_over_is_said_at_every_load(image_folder):
    (image_folder / "train" / "cat" / "notes.txt").touch()
    for _ in range(2):
        with pytest.warns(
            OvertoneWarning, match=r"^1 file of 'imagefolder:.*' passed over, .*: 'train/cat/notes.txt'$"
        ):
            load_data(DataSpec(name=f"imagefolder:{image_folder}", image_size=7))


def test_images_of_several_sizes_are_refused_with_what_helps(tmp_path, image_folder):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    files = sorted((image_folder / "train" / "cat").iterdir())
    rows_ = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    for part in ("train", "test"):
        table = pa.table({"image": pa.array(rows_, struct), "label": [i % 2 for i in range(len(rows_))]})
        pq.write_table(table, tmp_path / f"{part}.parquet")
    spec = DataSpec(name=f"parquet:{tmp_path}")
    with pytest.raises(
        OvertoneError, match=r"at most 1 % of a split may be left out; --image-size brings images of sev"
    ):
        load_data(spec)
    for stream_ in (False, True):
        assert load_data(replace(spec, image_size=8, stream=stream_)).train.take(torch.tensor([3])).shape == (
            1,
            3,
            8,
            8,
        )


def test_a_line_describes_the_images(image_folder):
    name = f"imagefolder:{image_folder}"
    described = {
        "(resized to 8 at the shorter side, bilinear, and center-cropped)": {"name": name, "image_size": 7},
        "(resized to 9 at the shorter side, bicubic, and center-cropped) normalized by mean 0.5, 0.5, 0.5 and "
        "std 1, 1, 1 of pixels in [0, 1]": {
            "name": name,
            "image_size": 7,
            "resize_size": 9,
            "interpolation": "bicubic",
            "mean": 0.5,
            "std": 1,
        },
        "images of 'digits': 1x8x8 normalized by mean 0.3053 and std 0.3759 of pixels in [0, 1] (the digits' own,": {},
        "(ImageNet's, as none were given: --mean and --std)": {"name": name, "image_size": 7},
    }
    for text, given in described.items():
        assert text in describe_images(DataSpec(**given), load_data(DataSpec(**given)))
