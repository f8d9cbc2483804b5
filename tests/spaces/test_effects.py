import json
from dataclasses import replace

import pytest

from layers import UsageError
from spaces import BlockConfig
from spaces.effects import Effect, Effects

EFFECT = Effect(
    block="layer1.0",
    config=BlockConfig(basis="cosine", harmonics=(2, 1), bits=4),
    loss=0.5,
    divergence=0.25,
    divergence_error=0.125,
    score=0.75,
    seconds=2.0,
    bytes_saved=1000,
    flops_saved=-5,
)
LIBRARY = Effects(
    loss=0.25,
    score=1.0,
    images=64,
    calibration_images=32,
    seed=2**60,
    minimum_templates=4,
    reference_s=0.5,
    effects=(EFFECT, replace(EFFECT, block="norms_and_biases", config=BlockConfig(bits=8))),
)


def test_a_library_comes_back_from_json_and_adds_up_its_seconds() -> None:
    assert Effects.from_json(json.loads(json.dumps(LIBRARY.to_json()))) == LIBRARY
    assert LIBRARY.seconds == 4.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"effects": 3}, r"effects \(=3\) must be a list of effects"),
        ({"images": 1.5}, r"images \(=1.5\) must be a whole number"),
        ({"loss": "low"}, r"loss \(='low'\) must be a number"),
        ({"more": 1}, r"effects library must be a mapping with the keys calibration_images, effects, images, "),
        ({"effects": [{}]}, r"effect must be a mapping with the keys block, bytes_saved, config, "),
        ({"effects": [{**EFFECT.to_json(), "config": {"bits": 99}}]}, r"bits \(=99\) must be a whole number from 1"),
    ],
)
def test_what_is_no_library_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Effects.from_json({**LIBRARY.to_json(), **change})
