"""The packed bytes decoded by plain operators."""

import random

import pytest
import torch
from torch import nn

from layers import LayerForm, compress_model, join_state, pack_state, split_state, unpack_state
from layers.blockfloat import AXES, Axis
from layers.series import basis
from layers.templates.transforms import TRANSFORMS
from spaces.portable.payload_decoder import PayloadDecoder


def _forms(rng: random.Random, channels: int) -> dict[str, LayerForm]:
    """Forms of three convolutions, a norm and a linear layer, each with its own widths and blocks."""

    def numbers(block: int = 128, axes: tuple[Axis, ...] = AXES) -> dict[str, object]:
        if rng.random() < 0.3:
            return {"bits": rng.randint(2, 7), "scale": "bfloat16"}
        return {
            "bits": rng.randint(1, 16),
            "exponent_bits": rng.choice((6, 7)),
            "exponent_block": rng.randint(1, block),
            "exponent_axis": rng.choice(axes),
        }

    harmonics = (rng.randint(1, 3), rng.randint(1, 3))
    series = {"basis": rng.choice(basis.BASES), "harmonics": harmonics}
    template = {"templates": rng.randint(2, 5), "transform": rng.choice(TRANSFORMS[:3]), "assignment": "residual"}
    return {
        "0": LayerForm(**series, **numbers()),
        "1": LayerForm(vector_bits=rng.randint(1, 16)),
        "2": LayerForm(**template, **numbers(), groups=rng.choice((1, channels))),
        "3": LayerForm(**series, allocation="filter", **numbers(axes=("flat",)), vector_bits=rng.randint(1, 16)),
        "4": LayerForm(**numbers(8)),
    }


@pytest.mark.parametrize("repeat", range(8))
def test_the_state_is_that_of_the_packed_model(rng: random.Random, generator: torch.Generator, repeat: int) -> None:
    a, b, c = (rng.randint(1, 9) for _ in range(3))
    n = rng.randint(6, 13)
    layers = (nn.Conv2d(a, b, 3), nn.BatchNorm2d(b), nn.Conv2d(b, n, 3, bias=False), nn.Conv2d(n, c, 3))
    model = nn.Sequential(*layers, nn.Linear(c, rng.randint(1, 9)), nn.BatchNorm1d(3))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_(generator=generator)
    forms = _forms(rng, b)
    compressed = compress_model(model, {name: form for name, form in forms.items() if rng.random() < 0.8})
    payload = join_state(pack_state(compressed))
    unpack_state(compressed, split_state(compressed, payload))
    decoded, state = PayloadDecoder(compressed).decode(payload), compressed.state_dict()
    assert decoded.keys() == {name for name in state if not name.endswith("num_batches_tracked")}
    for name, tensor in decoded.items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, state[name]), name
