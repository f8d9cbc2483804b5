import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from layers.errors import OvertoneError, UsageError
from trainers.data.spec import DataSpec


@pytest.mark.parametrize("name", ["digits", "cifar10", "parquet:/some/dir", "imagefolder:relative/dir"])
def test_the_four_forms_are_taken(name):
    assert DataSpec(name=name).name == name


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("digits", "digits"),
        ("parquet:/some/dir", "parquet:dir"),
        ("imagefolder:relative/dir/", "imagefolder:dir"),
        ("parquet:~/cifar10", "parquet:cifar10"),
    ],
)
def test_a_label_tells_the_last_folder_alone(name, label):
    assert DataSpec(name=name).label == label


@pytest.mark.parametrize(
    "name",
    [
        "",
        "cifar100",
        "Digits",
        "parquet",
        "parquet:",
        "imagefolder:",
        "digits:x",
        ":x",
        "parquet:a\0b",
        "object",
        "objects:x",
    ],
)
def test_an_unknown_name_is_answered_with_the_allowed_forms(name):
    with pytest.raises(
        UsageError, match=r"dataset \(=.*\) must be one of 'digits', 'cifar10', 'parquet:DIR' or 'imagefolder"
    ):
        DataSpec(name=name)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"name": 5}, r"dataset \(=5\) must be one of"),
        ({"seed": -1}, r"data seed \(=-1\) must be a whole number of at least 0"),
        ({"seed": 1.5}, r"data seed \(=1.5\) must be a whole number"),
        ({"seed": 2**32}, r"data seed \(=4294967296\) must be a whole number of at least 0 and below 2\*\*32"),
        ({"train_limit": 1}, r"train_limit \(=1\) must be a whole number of at least 2"),
        ({"train_limit": 10.5}, r"train_limit \(=10.5\) must be a whole number"),
        ({"val_from": "val"}, r"val_from \(='val'\) must be 'train', 'test' or 'validation'"),
        ({"val_from": "validation"}, r"val_from \(='validation'\) must be 'train' or 'test' for 'digits'"),
        (
            {"image_size": 32},
            r"image_size \(=32\) must be left out for 'digits'; imagefolder:DIR and parquet:DIR take it",
        ),
        ({"resize_size": 32}, r"resize_size \(=32\) must be left out for 'digits'; imagefolder:DIR"),
        (
            {"name": "cifar10", "interpolation": "bicubic"},
            r"interpolation \(='bicubic'\) must be left out for 'cifar10'",
        ),
        ({"name": "parquet:x", "resize_size": 8}, r"resize_size \(=8\) must be left out for .* without an image_size"),
        ({"name": "imagefolder:x", "resize_size": 200}, r"resize_size \(=200\) must be at least the image size, 224"),
        (
            {"name": "imagefolder:x", "interpolation": "cubic"},
            r"interpolation \(='cubic'\) must be one of bilinear, bi",
        ),
        ({"channels": 2}, r"channels \(=2\) must be 1 or 3$"),
        ({"channels": True}, r"channels \(=True\) must be 1 or 3$"),
        ({"name": "object:x", "channels": 3}, r"channels \(=3\) must be left out for images that are given as objects"),
        ({"stream": True}, r"stream \(=True\) must be false for 'digits'; 'parquet:DIR' and 'imagefolder:DIR' take it"),
        ({"stream": True, "name": "cifar10"}, r"stream \(=True\) must be false for 'cifar10'"),
        ({"stream": 1, "name": "parquet:x"}, r"stream \(=1\) must be true or false"),
        ({"name": "imagefolder:x", "image_size": 0}, r"image_size \(=0\) must be a whole number of at least 1"),
        ({"name": "imagefolder:x", "image_size": 8.0}, r"image_size \(=8.0\) must be a whole number"),
    ],
)
def test_wrong_values_are_named(wrong, match):
    with pytest.raises(UsageError, match=match):
        DataSpec(**wrong)


@pytest.mark.parametrize(
    ("name", "absolute"),
    [
        ("digits", "digits"),
        ("parquet:/some/dir", "parquet:/some/dir"),
        ("imagefolder:relative/../dir/", "imagefolder:/here/dir"),
        ("parquet:~/set", "parquet:/home/me/set"),
    ],
)
def test_the_same_data_for_another_working_directory(monkeypatch, name, absolute):
    monkeypatch.setattr("os.getcwd", lambda: "/here")
    monkeypatch.setenv("HOME", "/home/me")
    spec = DataSpec(name=name, data_dir="~/data", seed=3).absolute()
    assert spec == DataSpec(name=absolute, data_dir="/home/me/data", seed=3)
    assert spec.absolute() == spec
    assert DataSpec(name=name).absolute().data_dir == "/here/data"


def test_usage_errors_are_overtone_errors():
    assert issubclass(UsageError, OvertoneError)


def test_kind_and_folder_are_the_two_sides_of_the_first_colon(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    spec = DataSpec(name="parquet:~/a:b")
    assert (spec.kind, spec.folder) == ("parquet", "/home/someone/a:b")
    assert (DataSpec().kind, DataSpec().folder) == ("digits", "")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, {"mean": None, "std": None, "augment": None}),
        ({"mean": 0, "std": 1}, {"mean": (0.0,), "std": (1.0,)}),
        ({"mean": [0.5, -1, 2], "std": (1, 2, 3)}, {"mean": (0.5, -1.0, 2.0), "std": (1.0, 2.0, 3.0)}),
        ({"mean": np.array([1, 2]), "std": torch.ones(2)}, {"mean": (1.0, 2.0), "std": (1.0, 1.0)}),
        ({"augment": "shift"}, {"augment": "shift"}),
    ],
)
def test_settings_of_images_that_are_held_survive_json(given, kept):
    spec = DataSpec(name="object:tensors", **given)
    assert asdict(spec).items() >= kept.items()
    again = DataSpec(**json.loads(json.dumps(asdict(spec))))
    assert again == spec
    assert hash(again) == hash(spec)


@pytest.mark.parametrize("name", ["digits", "cifar10", "parquet:object:x", "imagefolder:x", "object:x"])
def test_every_set_takes_a_normalization_and_an_augmentation(name):
    spec = DataSpec(name=name, mean=[0.5, 0.25, 1], std=2, augment="none")
    assert spec.normalization(3) == ((0.5, 0.25, 1.0), (2.0, 2.0, 2.0))
    with pytest.raises(
        UsageError, match=r"^mean \(=\[0.5, 0.25, 1.0\]\) must be one number, or one for each of 1 chan"
    ):
        spec.normalization(1)
    assert DataSpec(name=name).normalization(3) is None


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"mean": 0.5}, r"mean \(=0.5\) and std \(=None\) must be given together$"),
        ({"std": 0.5}, r"mean \(=None\) and std \(=0.5\) must be given together$"),
        *(
            ({"mean": mean, "std": 1}, r"mean \(=.*\) must be finite numbers, one a channel$")
            for mean in ("0.5", [], (), [None], [0.5, float("nan")], float("inf"), [[0.5]], {"a": 1})
        ),
        *(
            ({"mean": 0, "std": std}, r"std \(=.*\) must be finite numbers above 0, one a channel$")
            for std in (0, -1, [1, 0], float("inf"), float("nan"), "1", torch.zeros(3), [])
        ),
        ({"augment": "flip"}, r"augment \(='flip'\) must be one of none, shift, crop-flip$"),
        ({"augment": ["none"]}, r"augment \(=\['none'\]\) must be one of none, shift, crop-flip$"),
        ({"stream": True}, r"stream \(=True\) must be false for 'object:x'"),
        ({"image_size": 8}, r"image_size \(=8\) must be left out for 'object:x'"),
    ],
)
def test_wrong_settings_of_images_that_are_held_are_named(wrong, match):
    with pytest.raises(UsageError, match=rf"^{match}"):
        DataSpec(name="object:x", **wrong)


def test_images_that_are_held_have_no_folder():
    spec = DataSpec(name="object:a/b")
    assert spec.is_object
    assert (spec.kind, spec.folder, spec.label) == ("object", "", "object:a/b")
    assert spec.absolute().name == "object:a/b"
    assert not DataSpec(name="parquet:object:x").is_object
