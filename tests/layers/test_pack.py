import copy

import pytest
import torch
from torch import nn

from layers import LayerForm, OvertoneError, compress_model, pack_state, unpack_state
from layers.blockfloat import quantize

FORMS = {
    "0": LayerForm(basis="cosine", harmonics=(2, 3), templates=5, groups=3, transform="scalar", bits=5),
    "3": LayerForm(templates=9, transform="scalar", bits=7, exponent_block=16, exponent_axis="channel"),
    "6": LayerForm(bits=4, exponent_block=8, exponent_axis="filter", activation_bits=3),
}


@pytest.fixture
def dense(fill):
    return fill(
        nn.Sequential(
            *(nn.Conv2d(3, 9, 3), nn.BatchNorm2d(9), nn.ReLU()),
            *(nn.Conv2d(9, 9, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 4)),
        )
    ).eval()


@pytest.fixture
def compressed(dense):
    return compress_model(dense, FORMS).eval()


def test_packed_tensors_are_bytes_bits_and_the_rest_as_it_was(compressed):
    packed = pack_state(compressed)
    state = compressed.state_dict()
    quantized = {"0.coefficients", "0.gains", "3.coefficients", "3.gains", "6.coefficients"}
    pairs = {f"{name}.{part}" for name in quantized for part in ("mantissas", "exponents")}
    assert set(packed) == pairs | {name for name in state if name not in quantized} - {"1.num_batches_tracked"}
    bits = "".join(f"{byte:08b}" for byte in packed["0.template_mask"].tolist())
    assert [bit == "1" for bit in bits[:9]] == compressed[0].template_mask.tolist()
    assert torch.equal(packed["0.bias"], state["0.bias"])
    assert torch.equal(packed["1.running_var"], state["1.running_var"])


def test_unpacked_network_gives_bit_equal_outputs_and_holds_the_quantised_weights(dense, compressed, fill, normal):
    packed = {name: value.clone() for name, value in pack_state(compressed).items()}
    other = compress_model(fill(copy.deepcopy(dense)), FORMS).eval()
    x = normal(4, 3, 9, 9, dtype=torch.float32)
    assert not torch.equal(other(x), compressed(x))
    unpack_state(other, packed)
    assert torch.equal(other(x), compressed(x))
    assert packed["3.gains.mantissas"].numel() == 0  # all filters are templates
    stored = quantize(compressed[3].coefficients, FORMS["3"].weight_format)
    assert torch.equal(other[3].coefficients, stored)
    assert torch.equal(other[0].template_mask, compressed[0].template_mask)
    again = pack_state(other)
    assert again.keys() == packed.keys()
    assert all(torch.equal(again[name], packed[name]) for name in packed)


def test_truth_values_of_any_shape_come_back(rng):
    model = nn.Conv2d(1, 2, 1)
    mask = torch.tensor([[rng.random() < 0.5 for _ in range(5)] for _ in range(3)])
    model.register_buffer("mask", mask.clone())
    packed = pack_state(model)
    assert packed["mask"].numel() == 2
    model.mask.logical_not_()
    unpack_state(model, packed)
    assert torch.equal(model.mask, mask)


@pytest.mark.parametrize(
    "name", ["0.coefficients.mantissas", "0.gains.exponents", "0.template_mask", "1.running_mean", "0.bias"]
)
def test_missing_and_misshapen_tensors_are_named(name, compressed):
    packed = pack_state(compressed)
    value = packed.pop(name)
    with pytest.raises(OvertoneError, match=rf"^the packed model lacks the tensor '{name}'$"):
        unpack_state(compressed, packed)
    with pytest.raises(OvertoneError, match=rf"^the packed tensor '{name}' is .*, not {value.dtype} "):
        unpack_state(compressed, packed | {name: value[1:]})
    with pytest.raises(OvertoneError, match=rf"^the packed tensor '{name}' is torch.float64 .*, not {value.dtype} "):
        unpack_state(compressed, packed | {name: value.double()})


def test_left_over_tensor_is_named_and_nothing_is_filled(compressed):
    before = copy.deepcopy(compressed.state_dict())
    packed = pack_state(compressed) | {"7.weight": torch.zeros(1)}
    packed["0.bias"] = packed["0.bias"] + 1
    with pytest.raises(OvertoneError, match=r"^the packed model holds the tensor '7.weight', which the network lacks$"):
        unpack_state(compressed, packed)
    assert all(torch.equal(value, before[name]) for name, value in compressed.state_dict().items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 2.0**64])
def test_tensor_that_cannot_be_packed_is_named(bad, compressed):
    with torch.no_grad():
        compressed[3].coefficients.view(-1)[3] = bad
    message = r"^cannot pack the tensor '3.coefficients': values must be finite and within the range of the exponent$"
    with pytest.raises(OvertoneError, match=message):
        pack_state(compressed)
