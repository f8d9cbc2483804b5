import dataclasses

import pytest
import torch
from torch import nn

from layers import LayerForm, LayerShape, UsageError, compress_layer, layer_cost, pack_state
from layers.blockfloat.format import BlockFormat
from layers.form import canonical_form, stored_tensors

SHAPE = LayerShape(kind="conv2d", in_channels=12, out_channels=20, kernel=(5, 3), groups=2, bias=True)
NORM = LayerShape(kind="norm", in_channels=4, out_channels=4, vectors=("weight", "bias"))
LINEAR = LayerShape(kind="linear", in_channels=12, out_channels=20, bias=True)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"basis": "cosine"}, r"basis \(='cosine'\) and harmonics \(=None\) must be given together$"),
        ({"harmonics": (2, 2)}, r"basis \(=None\) and harmonics \(=\(2, 2\)\) must be given together$"),
        ({"basis": "cosine", "harmonics": (5, 0)}, r"harmonics \(=\(5, 0\)\) must be two whole numbers of at least 1"),
        ({"basis": "cosine", "harmonics": (2.0, 2)}, r"harmonics \(=\(2\.0, 2\)\) must be two whole numbers"),
        ({"basis": "cosine", "harmonics": 2}, r"harmonics \(=2\) must be two whole numbers"),
        ({"basis": "sine", "harmonics": (2, 2)}, r"basis \(='sine'\) must be cosine or chebyshev, or"),
        ({"templates": 4}, r"templates \(=4\) and transform \(=None\) must be given together$"),
        ({"transform": "scalar"}, r"templates \(=None\) and transform \(='scalar'\) must be given together$"),
        (
            {"templates": 4, "transform": "spin"},
            r"transform \(='spin'\) must be one of scalar, rotation, ",
        ),
        ({"groups": 2}, r"groups \(=2\) must be 1 in a layer without templates$"),
        ({"templates": 4, "transform": "scalar", "groups": 0}, r"groups \(=0\) must be a whole number of at least 1$"),
        ({"templates": 4, "transform": "scalar", "groups": -2}, r"groups \(=-2\) must be a whole number"),
        ({"templates": 4, "transform": "scalar", "groups": 2.0}, r"groups \(=2\.0\) must be a whole number"),
        ({"bits": 0}, r"bits \(=0\) must be a whole number from 1 to 16$"),
        ({"bits": 4, "exponent_block": 0}, r"block \(=0\) must be a whole number from 1 to 128$"),
        ({"bits": 4, "exponent_bits": 9}, r"exponent_bits \(=9\) must be a whole number from 2 to 7$"),
        ({"bits": 4, "exponent_axis": "row"}, r"axis \(='row'\) must be one of flat, filter, channel$"),
        ({"activation_bits": 4, "activation_block": 0}, r"block \(=0\) must be a whole number from 1 to 128$"),
        ({"exponent_axis": "filter"}, r"exponent_axis \(='filter'\) must be 'flat' without bits$"),
        ({"bits": 4, "activation_block": 4}, r"activation_block \(=4\) must be 1 without activation_bits$"),
        ({"activation_bits": 17}, r"^activation_bits \(=17\) must be a whole number from 1 to 16$"),
        ({"activation_bits": True}, r"^activation_bits \(=True\) must be a whole number from 1 to 16$"),
        ({"vector_bits": 0}, r"^vector_bits \(=0\) must be a whole number from 1 to 16$"),
        *(
            (asked, r"^scale \(='.*'\) must be bfloat16, of weights with bits that share no exponent$")
            for asked in (
                {"scale": "bfloat16"},
                {"scale": "float8", "bits": 3},
                {"scale": "bfloat16", "bits": 3, "exponent_block": 16},
                {"scale": "bfloat16", "bits": 3, "exponent_axis": "filter"},
            )
        ),
        ({"scale": "bfloat16", "bits": 8}, r"^bits \(=8\) must be a whole number from 2 to 7 with a scale$"),
        ({"arithmetic": "int4"}, r"^arithmetic \(='int4'\) must be one of float, int8$"),
        ({"arithmetic": None}, r"^arithmetic \(=None\) must be one of float, int8$"),
    ],
)
def test_forms_that_contradict_themselves_are_refused(asked, message):
    with pytest.raises(UsageError, match=message):
        LayerForm(**asked)


@pytest.mark.parametrize(
    ("shape", "asked", "message"),
    [
        (
            SHAPE,
            {"basis": "cosine", "harmonics": (6, 1)},
            r"harmonics \(=\(6, 1\)\) must be between 1 and .*\(5, 3\)",
        ),
        (SHAPE, {"templates": 21, "transform": "scalar"}, r"templates \(=21\) must be between 1 and .* 20 filters$"),
        (SHAPE, {"templates": 0, "transform": "scalar"}, r"templates \(=0\) must be between 1 and"),
        (SHAPE, {"templates": 4, "transform": "scalar", "groups": 4}, r"groups \(=4\) must divide the 6 channels"),
        (LINEAR, {"basis": "cosine", "harmonics": (1, 1)}, r"^a linear layer takes bits and arithmetic alone"),
        (NORM, {"bits": 4}, r"^a norm takes vector_bits alone"),
        (NORM, {"activation_bits": 4}, r"^a norm takes vector_bits alone"),
        (NORM, {"vector_bits": 4, "arithmetic": "int8"}, r"^a norm takes vector_bits alone"),
        (LINEAR, {"templates": 4, "transform": "scalar"}, r"^a linear layer takes bits and arithmetic alone"),
    ],
)
def test_forms_that_the_layer_cannot_take_are_refused(shape, asked, message):
    with pytest.raises(UsageError, match=message):
        stored_tensors(shape, LayerForm(**asked))


def test_stored_tensors_of_every_step():
    assert {k: v.shape for k, v in stored_tensors(SHAPE, LayerForm()).items()} == {
        "coefficients": (20, 6, 5, 3),
        "bias": (20,),
    }
    form = LayerForm(basis="chebyshev", harmonics=(4, 2), templates=7, groups=3, transform="scalar", bits=6)
    tensors = stored_tensors(SHAPE, form)
    assert {k: v.shape for k, v in tensors.items()} == {
        "coefficients": (21, 2, 4, 2),
        "gains": (13, 3, 5, 3),
        "bias": (20,),
    }
    assert tensors["coefficients"].format == tensors["gains"].format == form.weight_format
    assert tensors["bias"].format is None
    assert tensors["bias"].bytes == 80
    assert tensors["gains"].values == 13 * 3 * 15
    assert tensors["gains"].bytes == (585 * 7 + 7) // 8 + (585 * 7 + 7) // 8


def test_weights_are_stored_in_bits_and_activations_rounded_in_their_own():
    form = LayerForm(bits=6, exponent_block=32, exponent_bits=5, exponent_axis="filter")
    assert form.weight_format == BlockFormat(bits=6, block=32, exponent_bits=5, axis="filter")
    assert form.activation_format is None
    both = dataclasses.replace(form, activation_bits=4)
    assert both.activation_format == BlockFormat(bits=4, exponent_bits=5)
    shared = dataclasses.replace(both, activation_block=16)
    assert shared.activation_format == BlockFormat(bits=4, block=16, exponent_bits=5, axis="channel")
    alone = LayerForm(activation_bits=4)
    assert (alone.weight_format, alone.activation_format) == (None, BlockFormat(bits=4))
    assert shared.weight_format == form.weight_format
    assert LayerForm().weight_format is LayerForm().activation_format is None


ONE_TAP = LayerShape(kind="conv2d", in_channels=48, out_channels=6)


@pytest.mark.parametrize(
    ("shape", "form", "axis"),
    [
        (SHAPE, {"exponent_block": 7, "exponent_axis": "filter"}, "filter"),
        (SHAPE, {"exponent_block": 7, "exponent_axis": "channel"}, "channel"),
        (SHAPE, {"exponent_block": 1, "exponent_axis": "channel"}, "flat"),
        (SHAPE, {"exponent_block": 45, "exponent_axis": "filter"}, "flat"),  # 90 weights a filter
        (SHAPE, {"exponent_block": 6, "exponent_axis": "channel"}, "channel"),
        (ONE_TAP, {"exponent_block": 16, "exponent_axis": "channel"}, "flat"),
        (ONE_TAP, {"exponent_block": 32, "exponent_axis": "channel"}, "filter"),
        (LINEAR, {"exponent_block": 8, "exponent_axis": "channel"}, "filter"),
        (LINEAR, {"exponent_block": 4, "exponent_axis": "filter"}, "flat"),
        (
            SHAPE,  # 90 coefficients a template, 15 gains a filter
            {"templates": 3, "transform": "scalar", "exponent_block": 45, "exponent_axis": "filter"},
            "filter",
        ),
    ],
)
def test_settled_form_names_the_first_axis_with_the_same_blocks(shape, form, axis):
    form = LayerForm(bits=6, **form)
    found = canonical_form(shape, form)
    assert found == dataclasses.replace(form, exponent_axis=axis)
    assert canonical_form(shape, found) == found


def test_a_scale_is_one_for_each_filter():
    form = LayerForm(templates=7, transform="scalar", bits=3, scale="bfloat16")
    tensors = stored_tensors(SHAPE, form)
    assert tensors["coefficients"].bytes == 7 * 90 * 4 // 8 + 2 * 7
    assert tensors["gains"].bytes == (13 * 15 * 4 + 7) // 8 + 2 * 13
    assert canonical_form(SHAPE, form) == form


def test_settled_form_has_no_more_channels_to_a_block_than_there_are():
    wide = LayerForm(activation_bits=6, activation_block=64)
    assert canonical_form(LINEAR, wide).activation_block == 12
    assert canonical_form(ONE_TAP, wide).activation_block == 48
    assert canonical_form(ONE_TAP, LayerForm(activation_bits=6, activation_block=16)).activation_block == 16
    assert canonical_form(LINEAR, LayerForm()) == LayerForm()


@pytest.mark.parametrize("_", range(30))
def test_settled_form_computes_costs_and_packs_the_same(_, random_conv, random_form, images):
    conv = random_conv(dtype=torch.float32)
    form, x = random_form(conv), images(conv)
    layer = compress_layer(conv, form)
    other = compress_layer(conv, canonical_form(layer.shape, form))
    assert torch.equal(layer(x), other(x))
    assert layer_cost(layer.shape, form) == layer_cost(layer.shape, other.form)
    one, two = pack_state(nn.Sequential(layer)), pack_state(nn.Sequential(other))
    assert all(torch.equal(one[name], two[name]) for name in one | two)


@pytest.mark.parametrize("running", [{"activation_bits": 4, "activation_block": 2}, {"arithmetic": "int8"}])
@pytest.mark.parametrize("shape", [SHAPE, LINEAR])
def test_what_a_layer_does_when_it_runs_changes_nothing_that_it_costs(shape, running):
    shape = dataclasses.replace(shape, calls=(((8, 8), (4, 6)),))
    for form in (LayerForm(), LayerForm(bits=5, exponent_block=16)):
        assert layer_cost(shape, dataclasses.replace(form, **running)) == layer_cost(shape, form)


def test_shape_is_read_off_the_layer():
    conv = nn.Conv2d(12, 20, (5, 3), groups=2)
    assert LayerShape.from_module(conv) == SHAPE
    assert SHAPE.filter_channels == 6
    calls = (((1, 4), (1, 4)),)
    assert LayerShape.from_module(nn.Linear(3, 2, bias=False), calls) == LayerShape(
        kind="linear", in_channels=3, out_channels=2, calls=calls
    )
    with pytest.raises(UsageError, match=r"layer \(=ReLU\) must be a Conv2d, a Conv1d, a Linear or a norm$"):
        LayerShape.from_module(nn.ReLU())
