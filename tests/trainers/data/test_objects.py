import hashlib
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from layers.errors import OvertoneError, UsageError
from trainers.data.augment import augment
from trainers.data.objects import describe_objects, object_data, read_parts
from trainers.data.spec import DataSpec

FLOATS = DataSpec(name="object:tensors")
BYTES = DataSpec(name="object:tensors", mean=0.5, std=0.25)


class Items(Dataset):
    """Images and labels by their number, as most datasets give them."""

    def __init__(self, images, labels) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.images[index], self.labels[index]


@pytest.fixture
def draw(generator):
    """Random images, float or uint8, and labels in which each class comes as often as it may."""

    def drawn(n=40, shape=(3, 5, 6), classes=4, dtype=torch.float32):
        if dtype == torch.uint8:
            images = torch.randint(256, (n, *shape), generator=generator, dtype=torch.uint8)
        else:
            images = torch.randn(n, *shape, generator=generator, dtype=dtype)
        return images, (torch.arange(n) % classes)[torch.randperm(n, generator=generator)]

    return drawn


def pixels(data) -> dict[str, list[bytes]]:
    """The bytes of each image, by split."""
    return {name: [x.numpy().tobytes() for x in getattr(data, name).images] for name in ("train", "val", "test")}


def labeled(images, labels) -> Counter:
    """How often each image comes with each label."""
    return Counter((x.contiguous().numpy().tobytes(), int(y)) for x, y in zip(images, labels, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("as_pair", [tuple, list])
def test_tensors_are_taken_as_they_are(draw, dtype, as_pair):
    images, labels = draw(dtype=dtype)
    ((found, numbers),) = read_parts(as_pair((images, labels))).values()
    assert found.dtype == (torch.uint8 if dtype == torch.uint8 else torch.float32)
    assert torch.equal(found, images.to(found.dtype))
    assert numbers.dtype == torch.int64
    assert torch.equal(numbers, labels)


@pytest.mark.parametrize(
    "change",
    [
        lambda array: array,
        lambda array: array[..., ::-1],
        lambda array: array.transpose(0, 1, 3, 2),
        lambda array: array.astype(array.dtype.newbyteorder(">")),
        lambda array: np.broadcast_to(array[:1], array.shape),  # read-only, and no copy
    ],
)
@pytest.mark.parametrize("kind", ["i1", "u1", "u2", "u4", "u8", ">i4", "i8", "?", "list"])
def test_arrays_are_taken_whatever_their_layout(draw, change, kind):
    images, labels = draw(classes=2)
    array = change(images.numpy())
    numbers = labels.tolist() if kind == "list" else labels.numpy().astype(kind)
    found = read_parts((array, numbers))["all"]
    assert torch.equal(found[0], torch.from_numpy(np.array(array, dtype="f4")))
    assert torch.equal(found[1], labels)


@pytest.mark.parametrize(
    "make",
    [
        TensorDataset,
        Items,
        lambda images, labels: Items(images, [int(y) for y in labels]),
        lambda images, labels: Items(images.double(), labels.numpy()),
        lambda images, labels: Items(images.numpy(), labels.to(torch.uint8)),
        lambda images, labels: Items(images.clone().requires_grad_(), labels.unsqueeze(1)),
        lambda images, labels: list(zip(images, labels.tolist(), strict=True)),
        lambda images, labels: Subset(TensorDataset(images.flip(0), labels.flip(0)), range(len(labels))[::-1]),
        lambda images, labels: ConcatDataset([TensorDataset(images[:3], labels[:3]), Items(images[3:], labels[3:])]),
    ],
)
def test_a_dataset_is_read_in_order(draw, make):
    images, labels = draw()
    seen = []
    found = read_parts(make(images, labels), lambda done, total: seen.append((done, total)))["all"]
    assert torch.equal(found[0], images)
    assert not found[0].requires_grad
    assert torch.equal(found[1], labels)
    assert seen == [(i + 1, 40) for i in range(40)]


def test_a_dataset_of_two_images_is_no_pair_of_tensors(draw):
    images, labels = draw(n=2)
    found = read_parts([(images[0], int(labels[0])), (images[1], int(labels[1]))])["all"]
    assert torch.equal(found[0], images)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("P", 3), ("RGBA", 3), ("LA", 3), ("1", 3)])
def test_pillow_images_of_eight_bits_are_gray_or_rgb(np_rng, mode, channels):
    originals = [Image.fromarray(np_rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).convert(mode) for _ in range(6)]
    images, labels = read_parts(Items(originals, [0, 1, 2] * 2))["all"]
    assert images.dtype == torch.uint8
    assert images.shape == (6, channels, 5, 7)
    assert images.is_contiguous()
    for image, original in zip(images, originals, strict=True):
        expected = np.asarray(original.convert("L" if channels == 1 else "RGB"))
        assert np.array_equal(image.permute(1, 2, 0).squeeze(-1).numpy(), expected)
    assert labels.tolist() == [0, 1, 2] * 2


@pytest.mark.parametrize(("mode", "dtype"), [("I;16", np.uint16), ("I", np.int32), ("F", np.float32)])
def test_pillow_images_of_more_bits_are_refused(mode, dtype, np_rng):
    image = Image.fromarray(np_rng.integers(0, 256, (5, 7)).astype(dtype))
    assert image.mode == mode
    with pytest.raises(UsageError, match=rf"^item 1 of all \(=mode '{mode}'\) must have 8 bits a channel$"):
        read_parts(Items([image.convert("L") if mode == "I" else Image.new("L", (7, 5)), image], [0, 1]))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ((torch.zeros(2, 1, 4, 4), torch.zeros(2)), "object:tensors"),
        ([np.zeros((2, 1, 4, 4)), [0, 1]], "object:tensors"),
        (TensorDataset(torch.zeros(2, 1, 4, 4), torch.zeros(2)), "object:TensorDataset"),
        ({"train": (torch.zeros(2), []), "val": (torch.zeros(2), [])}, "object:tensors"),
        ({"train": Items([], []), "test": (torch.zeros(2), [])}, "object:Items+tensors"),
    ],
)
def test_data_are_known_by_their_classes(data, name):
    assert describe_objects(data) == name
    assert DataSpec(name=name).name == name


@pytest.mark.parametrize("keys", [(), ("train",), ("val", "test"), ("all",), ("train", "val", "holdout"), ("train", 1)])
def test_parts_of_other_names_are_refused(draw, keys):
    parts = dict.fromkeys(keys, draw())
    shown = ", ".join(map(str, keys)) or "none"
    for function in (describe_objects, read_parts):
        with pytest.raises(UsageError, match=rf"^data \(=parts {shown}\) must have train, and val or test$"):
            function(parts)


@pytest.mark.parametrize("data", [5, None, iter([1]), {1, 2}, object()])
def test_what_is_no_data_is_refused(data):
    for function in (describe_objects, read_parts):
        with pytest.raises(
            UsageError, match=rf"^data \(=all of {type(data).__name__}\) must be \(images, labels\), a dataset"
        ):
            function(data)


@pytest.mark.parametrize(
    ("n", "classes", "seed"), [(100, 4, 0), (100, 4, 2**32 - 1), (83, 7, 5), (60, 1, 1), (40, 2, 3), (400, 10, 9)]
)
def test_undivided_data_are_split_with_every_class_in_proportion(draw, n, classes, seed):
    images, labels = draw(n=n, classes=classes)
    spec = DataSpec(name="object:tensors", seed=seed)
    data = object_data(spec, read_parts((images, labels)))
    splits = (data.train, data.val, data.test)
    for split, share in zip(splits, (0.6, 0.2, 0.2), strict=True):
        assert abs(len(split) - share * n) <= 1
        counts = split.labels.bincount(minlength=classes)
        assert (counts - share * labels.bincount(minlength=classes)).abs().max() <= 2
    assert sum((labeled(split.images, split.labels) for split in splits), Counter()) == labeled(images, labels)
    assert pixels(data) == pixels(object_data(spec, read_parts((images, labels))))
    other = object_data(DataSpec(name="object:tensors", seed=seed ^ 1), read_parts((images, labels)))
    assert pixels(other) != pixels(data)


@pytest.mark.parametrize("other", ["val", "test"])
def test_a_part_beside_train_serves_twice_only_as_halves(draw, other):
    train, held = draw(n=100), draw(n=40)
    data = object_data(FLOATS, read_parts({"train": train, other: held}))
    found = {name: labeled(getattr(data, name).images, getattr(data, name).labels) for name in ("train", "val", "test")}
    if other == "val":
        assert found["train"] == labeled(*train)
        assert found["val"] + found["test"] == labeled(*held)
        assert [len(data.val), len(data.test)] == [20, 20]
        assert data.val.labels.bincount().tolist() == data.test.labels.bincount().tolist() == [5] * 4
    else:
        assert found["test"] == labeled(*held)
        assert found["train"] + found["val"] == labeled(*train)
        assert len(data.val) == 10


def test_three_parts_stay_what_they_are(draw):
    parts = {name: draw(n=n) for name, n in (("test", 8), ("train", 40), ("val", 12))}
    data = object_data(FLOATS, read_parts(parts))
    for name, (images, labels) in parts.items():
        split = getattr(data, name)
        assert labeled(split.images, split.labels) == labeled(images, labels)
    assert torch.equal(data.val.images, parts["val"][0])
    assert torch.equal(data.test.images, parts["test"][0])


@pytest.mark.parametrize("divided", [("all",), ("train", "val"), ("train", "test"), ("train", "val", "test")])
def test_a_limit_takes_the_first_training_images_and_leaves_the_others(draw, divided):
    parts = {name: draw(n=40) for name in divided}
    read = read_parts(parts["all"] if divided == ("all",) else parts)
    whole, limited = (object_data(DataSpec(name="object:tensors", train_limit=limit), read) for limit in (None, 8))
    assert torch.equal(limited.train.images, whole.train.images[:8])
    assert limited.train.labels.bincount(minlength=4).tolist() == [2] * 4
    assert pixels(limited)["val"] == pixels(whole)["val"]
    assert pixels(limited)["test"] == pixels(whole)["test"]
    assert limited.fingerprint != whole.fingerprint


@pytest.mark.parametrize("divided", [False, True])
def test_validation_can_come_from_the_test_images(draw, divided):
    train, test = draw(n=80), draw(n=20)
    images, labels = (torch.cat(pair) for pair in zip(train, test, strict=True))
    read = read_parts({"train": train, "test": test} if divided else (images, labels))
    data = object_data(DataSpec(name="object:tensors", val_from="test"), read)
    assert [len(data.train), len(data.val), len(data.test)] == [80, 10, 10]
    splits = (data.train, data.val, data.test)
    assert sum((labeled(split.images, split.labels) for split in splits), Counter()) == labeled(images, labels)
    if divided:
        assert labeled(data.train.images, data.train.labels) == labeled(*train)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"all": 2}, r"the val split of 'object:tensors' has 0 images; it must have at least 1$"),
        ({"train": 4, "test": 5}, r"the val split of 'object:tensors' has 0 images"),
        ({"train": 5, "val": 1}, r"the val split of 'object:tensors' has 0 images"),
        ({"train": 1, "val": 4}, r"the train split of 'object:tensors' has 1 images; it must have at least 2$"),
        ({"train": 1, "val": 4, "test": 4}, r"the train split of 'object:tensors' has 1 images; it must have at leas"),
    ],
)
def test_splits_that_are_too_small_are_refused(draw, sizes, message):
    parts = {name: draw(n=n) for name, n in sizes.items()}
    with pytest.raises(OvertoneError, match=rf"^{message}"):
        object_data(FLOATS, read_parts(parts.get("all", parts)))


def test_parts_must_agree_in_shape_and_type(draw):
    one = draw()
    with pytest.raises(
        UsageError, match=r"^images of val \(=float32 \(40, 1, 5, 6\)\) must be of .*, float32 \(40, 3, 5, 6\)$"
    ):
        read_parts({"train": one, "val": draw(shape=(1, 5, 6))})
    with pytest.raises(UsageError, match=r"^images of test \(=uint8 \(9, 3, 5, 6\)\) must be of the shape and type"):
        read_parts({"train": one, "val": one, "test": draw(n=9, dtype=torch.uint8)})
    assert set(read_parts({"train": one, "val": draw(dtype=torch.float64)})) == {"train", "val"}


@pytest.mark.parametrize("odd", [torch.zeros(3, 5, 7), torch.zeros(3, 5, 6, dtype=torch.uint8), torch.zeros(1, 5, 6)])
def test_items_must_agree_in_shape_and_type(draw, odd):
    images, labels = draw()
    with pytest.raises(
        UsageError, match=r"^image 3 of train \(=.*\) must be of the shape and type of the first, float32 \(3, 5, 6\)$"
    ):
        read_parts({"train": Items([*images[:3], odd], labels[:4]), "val": (images, labels)})


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(0, 3, 4, 4), r"images of all \(=float32 \(0, 3, 4, 4\)\) must be one or more, and not empty"),
        (torch.zeros(2, 3, 0, 4), r"images of all \(=float32 \(2, 3, 0, 4\)\) must be one or more, and not empty"),
        (torch.zeros(2, 4, 4), r"images of all \(=float32 \(2, 4, 4\)\) must be uint8 or float \(n, C, H, W\)"),
        (torch.tensor(1.0), r"images of all \(=float32 \(\)\) must be uint8 or float \(n, C, H, W\)"),
        *(
            (torch.zeros(2, 3, 4, 4, dtype=dtype), rf"images of all \(={str(dtype)[6:]} .*\) must be uint8 or float")
            for dtype in (torch.int64, torch.int8, torch.bool, torch.complex64, torch.uint16)
        ),
        (np.array([["a", "b"]]), r"cannot read the tensors of all: can't convert np.ndarray of type numpy.str_"),
        *(
            (torch.full((2, 3, 4, 4), bad), r"images of all must be finite: some values are infinite or not numbers")
            for bad in (float("nan"), float("inf"), -float("inf"))
        ),
        (torch.full((2, 3, 4, 4), 1e300, dtype=torch.float64), r"images of all must be finite"),
    ],
)
def test_images_that_cannot_be_used_are_refused(images, message):
    with pytest.raises(UsageError, match=rf"^{message}"):
        read_parts((images, torch.zeros(len(images) if images.ndim else 1).long()))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(4), r"labels of all \(=float32 \(4,\)\) must be whole numbers \(n,\), one of 4 each$"),
        (torch.zeros(4, dtype=torch.complex64), r"labels of all \(=complex64 \(4,\)\) must be whole numbers"),
        (torch.eye(4).long(), r"labels of all \(=int64 \(4, 4\)\) must be whole numbers \(n,\)"),
        (torch.zeros(3).long(), r"labels of all \(=int64 \(3,\)\) must be whole numbers \(n,\), one of 4 each$"),
        (torch.tensor([0, 1, -1, 2]), r"labels of all must be 0 or more, the least is -1$"),
        (np.array([0, 1, 2**64 - 1, 2], dtype="u8"), r"labels of all must be 0 or more"),
        (None, r"cannot read the tensors of all: Could not infer dtype of NoneType$"),
        (["cat", "dog", "cat", "dog"], r"cannot read the tensors of all: .*'str'"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(draw, labels, message):
    images, _ = draw(n=4)
    with pytest.raises(UsageError, match=rf"^{message}"):
        read_parts((images, labels))


class Broken(Items):
    def __getitem__(self, index: int):
        if index == 2:
            raise KeyError("boom\nand more")
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Broken, r"item 2 of all must be an image and its label: KeyError: 'boom\\nand more'$"),
        (lambda x, y: Items(x, y + 0.5), r"item 0 of all must be an image and its label: TypeError: .*integer"),
        (lambda x, y: Items(x, [0, 1.0, 1, 0]), r"item 1 of all must be an image and its label: TypeError: 'float' ob"),
        (lambda x, y: Items(x, torch.eye(4).long()), r"item 0 of all must be an image and its label: TypeError: .*"),
        (lambda x, y: Items(["x.png"] * 4, y), r"item 0 of all must be an image and its label: "),
        (lambda x, y: TensorDataset(x), r"item 0 of all must be an image and its label: ValueError: not enough values"),
        (lambda x, y: TensorDataset(x, y, y), r"item 0 of all must be an image and its label: ValueError: too many"),
        (lambda x, y: x, r"item 0 of all must be an image and its label: ValueError: too many values"),
        (lambda x, y: Items(x, y - 1), r"labels of all must be 0 or more, the least is -1$"),
        (lambda x, y: Items(x[0], y), r"images of all \(=float32 \(4, 5, 6\)\) must be uint8 or float \(n, C, H, W\)$"),
        (lambda x, y: Items(x / 0, y), r"images of all must be finite"),
        (lambda x, y: Items(x[:0], y[:0]), r"data \(=all\) must hold one image or more$"),
    ],
)
def test_items_that_cannot_be_used_are_refused(draw, make, message):
    images, labels = draw(n=4, shape=(4, 5, 6))
    with pytest.raises(UsageError, match=rf"^{message}"):
        read_parts(make(images, labels))


@pytest.mark.parametrize(("labels", "classes"), [([0] * 40, 2), ([3] * 40, 4), ([0, 7] * 20, 8), ([0, 1] * 20, 2)])
def test_the_highest_label_is_that_of_the_last_class(draw, labels, classes):
    images, _ = draw()
    parts = read_parts((images, torch.tensor(labels)))
    data = object_data(FLOATS, parts)
    assert data.classes == classes
    assert set(data.train.labels.tolist()) == set(data.val.labels.tolist()) == set(labels)
    assert object_data(FLOATS, parts, classes=11).classes == 11
    assert object_data(FLOATS, parts, classes=max(labels) + 1).classes == max(labels) + 1


@pytest.mark.parametrize("where", ["train", "val"])
def test_labels_without_an_output_of_the_network_are_refused(draw, where):
    parts = {"train": draw(), "val": draw()}
    parts[where][1][5] = 9
    with pytest.raises(UsageError, match=r"^labels \(=0 to 9\) must be below 9, the number of the network's outputs$"):
        object_data(FLOATS, read_parts(parts), classes=9)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"mean": 0.1, "std": 0.2}, ((0.1,) * 3, (0.2,) * 3)),
        ({"mean": [0.1], "std": (2, 3, 4)}, ((0.1,) * 3, (2.0, 3.0, 4.0))),
        ({"mean": (0, -1, 2), "std": 1}, ((0.0, -1.0, 2.0), (1.0,) * 3)),
        ({"mean": np.array([0.5, 1, 2]), "std": torch.tensor([1.0, 2, 4])}, ((0.5, 1.0, 2.0), (1.0, 2.0, 4.0))),
        ({"mean": np.float32(0.5), "std": torch.tensor(0.25)}, ((0.5,) * 3, (0.25,) * 3)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalization_is_one_number_or_one_a_channel(draw, given, expected, dtype):
    data = object_data(DataSpec(name="object:tensors", **given), read_parts(draw(dtype=dtype)))
    assert (data.mean, data.std) == expected


def test_float_images_are_taken_as_they_are_and_bytes_need_a_normalization(draw):
    data = object_data(FLOATS, read_parts(draw()))
    assert (data.mean, data.std) == ((0.0,) * 3, (1.0,) * 3)
    assert torch.equal(data.normalize(data.train.images), data.train.images)
    with pytest.raises(UsageError, match=r"^mean and std must be given for uint8 images: those that the weights were"):
        object_data(FLOATS, read_parts(draw(dtype=torch.uint8)))


@pytest.mark.parametrize(("name", "given"), [("mean", ((1, 2), 1)), ("std", (1, (1, 2))), ("mean", ((1,) * 4, 1))])
def test_a_normalization_of_other_channels_is_refused(draw, name, given):
    spec = DataSpec(name="object:tensors", mean=given[0], std=given[1])
    with pytest.raises(UsageError, match=rf"^{name} \(=\[.*\]\) must be one number, or one for each of 3 channels$"):
        object_data(spec, read_parts(draw()))


@pytest.mark.parametrize(("channels", "usual"), [(1, "shift"), (3, "crop-flip"), (4, "crop-flip")])
def test_gray_images_are_not_mirrored_unless_it_is_said(draw, channels, usual):
    parts = read_parts(draw(shape=(channels, 5, 6)))
    assert object_data(FLOATS, parts).augment == usual
    for kind in ("none", "shift", "crop-flip"):
        assert object_data(DataSpec(name="object:tensors", augment=kind), parts).augment == kind


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_the_fingerprint_is_that_of_content(draw, dtype):
    images, labels = draw(dtype=dtype)
    spec = BYTES if dtype == torch.uint8 else DataSpec(name="object:tensors", mean=0.5, std=1)

    def fingerprint(data, spec=spec, **others):
        return object_data(spec, read_parts(data), **others).fingerprint

    known = fingerprint((images, labels))
    layout = images.contiguous(memory_format=torch.channels_last)
    for same in ((layout, labels.to(torch.int8)), (images.numpy(), labels.numpy()), TensorDataset(images, labels)):
        assert fingerprint(same) == known
    assert fingerprint((images, labels), DataSpec(name="object:Other", mean=(0.5,) * 3, std=spec.std)) == known
    if dtype == torch.uint8:
        pictures = [Image.fromarray(x.permute(1, 2, 0).contiguous().numpy()) for x in images]
        assert fingerprint(Items(pictures, labels.tolist())) == known
    pixel, label = images.clone(), labels.clone()
    pixel[7, 1, 2, 3] += 1
    label[7] = (label[7] + 1) % 4
    changed = [
        fingerprint((pixel, labels)),
        fingerprint((images, label)),
        fingerprint((images, labels), DataSpec(name="object:tensors", mean=0.25, std=spec.std)),
        fingerprint((images, labels), DataSpec(name="object:tensors", mean=0.5, std=3)),
        fingerprint((images, labels), DataSpec(name="object:tensors", mean=0.5, std=spec.std, seed=1)),
        fingerprint((images, labels), DataSpec(name="object:tensors", mean=0.5, std=spec.std, augment="none")),
        fingerprint((images, labels), classes=5),
        fingerprint({"train": (images, labels), "val": (images, labels)}),
    ]
    assert len({known, *changed}) == 1 + len(changed)


@pytest.mark.parametrize("as_given", ["tensors", "arrays", "dataset", "parts"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_nothing_of_the_callers_images_is_changed(draw, generator, as_given, dtype):
    images, labels = draw(dtype=dtype)
    forms = {
        "tensors": (images, labels),
        "arrays": (images.numpy(), labels.numpy()),
        "dataset": TensorDataset(images, labels),
        "parts": dict.fromkeys(("train", "val", "test"), (images, labels)),
    }
    before = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).digest()
    data = object_data(BYTES, read_parts(forms[as_given]))
    for split in (data.train, data.val, data.test):
        kept = split.images.clone()
        for kind in ("none", "shift", "crop-flip"):
            for rotation in (0.0, 20.0):
                data.normalize(augment(split.images, kind, generator, rotation=rotation)).fill_(7)
        assert torch.equal(split.images, kept)
        split.images.fill_(1)
        split.labels.fill_(1)
    assert hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).digest() == before


def test_reading_warns_of_nothing(draw):
    images, labels = draw()
    frozen = images.numpy().copy()
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(read_parts((frozen, labels))["all"][0], images)
        assert torch.equal(read_parts(Items(frozen, labels))["all"][0], images)
