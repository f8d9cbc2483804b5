import pytest
import torch
from torch import nn

from layers import UsageError
from search.study.objects import NO_OBJECTS, Objects


class Net(nn.Module):
    pass


IMAGES = (torch.zeros(4, 1, 3, 3), torch.zeros(4).long())


def _held(objects):
    return objects.model, objects.data


def test_what_is_missing_is_taken_from_another():
    one, other = Objects(model=Net(), data=IMAGES), Objects(model=Net(), data={"train": IMAGES, "val": IMAGES})
    for both in one.or_else(other), NO_OBJECTS.or_else(one), one.or_else(NO_OBJECTS):
        assert _held(both) == (one.model, one.data)
    assert _held(Objects(model=one.model).or_else(other)) == (one.model, other.data)
    assert _held(Objects(data=one.data).or_else(other)) == (other.model, one.data)
    assert _held(NO_OBJECTS.or_else(NO_OBJECTS)) == (None, None)


def test_what_is_missing_is_never_compared_with_what_is_there():
    """Tensors have no one truth value, and a module without children is empty."""
    empty = nn.Sequential()
    assert Objects(model=empty).or_else(Objects(model=Net())).model is empty
    array = IMAGES[0]
    assert Objects(data=array).or_else(Objects(data=IMAGES)).data is array


@pytest.mark.parametrize(
    ("objects", "names"),
    [
        (Objects(model=Net(), data=IMAGES), {"model": "object:Net", "data": "object:tensors"}),
        (Objects(model=Net(), data=IMAGES), {"model": "object:Net"}),
        (Objects(model=Net(), data=IMAGES), {"data": "object:tensors"}),
        (Objects(model=Net()), {"model": "object:Net", "data": "digits"}),
        (Objects(data=IMAGES), {"model": "resnet8", "data": "object:tensors"}),
        (NO_OBJECTS, {"model": "package:factory", "data": "parquet:object:x"}),
        (NO_OBJECTS, {}),
        (Objects(model=Net(), data=IMAGES), {}),
    ],
)
def test_objects_pass_under_their_own_names(objects, names):
    objects.check(**names)


@pytest.mark.parametrize(
    ("objects", "names", "message"),
    [
        (
            NO_OBJECTS,
            {"model": "object:Net"},
            r"the study was begun with the object 'object:Net': give it again in Python, as model$",
        ),
        (
            Objects(model=Net()),
            {"model": "object:Net", "data": "object:tensors"},
            r"the study was begun with the object 'object:tensors': give it again in Python, as data$",
        ),
        (
            Objects(model=nn.Linear(1, 1)),
            {"model": "object:Net"},
            r"model \(='object:Linear'\) must be the 'object:Net' that the study was begun with$",
        ),
        (
            Objects(data={"train": IMAGES, "test": [1]}),
            {"data": "object:tensors"},
            r"data \(='object:tensors\+list'\) must be the 'object:tensors' that the study was begun with$",
        ),
        (
            Objects(model=Net()),
            {"model": "resnet8"},
            r"model \(='object:Net'\) must be left out: the study was begun with 'resnet8'$",
        ),
        (
            Objects(data=IMAGES),
            {"data": "digits"},
            r"data \(='object:tensors'\) must be left out: the study was begun with 'digits'$",
        ),
        (
            Objects(data={"train": IMAGES}),
            {"data": "object:tensors"},
            r"data \(=parts train\) must have train, and val",
        ),
    ],
)
def test_other_objects_than_those_of_the_study_are_refused(objects, names, message):
    with pytest.raises(UsageError, match=rf"^{message}"):
        objects.check(**names)
