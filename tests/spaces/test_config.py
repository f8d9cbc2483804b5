import json

import pytest

from layers import UsageError
from spaces import BlockConfig, NetworkConfig

FULL = BlockConfig(
    basis="chebyshev",
    harmonics=(2, 3),
    pruning_rate=0.75,
    groups=2,
    transform="scalar",
    bits=6,
    exponent_block=16,
    exponent_axis="channel",
    scale="bfloat16",
    activation_bits=5,
    activation_block=32,
    arithmetic="int8",
)


def test_json_round_trip():
    config = NetworkConfig(
        blocks={"layer1": FULL, "conv1": BlockConfig(bits=4), "fc": BlockConfig()}, minimum_templates=3
    )
    data = config.to_json()
    assert data == {
        "blocks": {
            "layer1": {
                "basis": "chebyshev",
                "harmonics": [2, 3],
                "pruning_rate": 0.75,
                "groups": 2,
                "transform": "scalar",
                "bits": 6,
                "exponent_block": 16,
                "exponent_axis": "channel",
                "scale": "bfloat16",
                "activation_bits": 5,
                "activation_block": 32,
                "arithmetic": "int8",
            },
            "conv1": {"bits": 4},
            "fc": {},
        },
        "minimum_templates": 3,
    }
    assert NetworkConfig.from_json(json.loads(json.dumps(data))) == config
    assert NetworkConfig.from_json({}) == NetworkConfig()


def test_random_configs_come_back(wide_space, draw):
    for _ in range(300):
        config = wide_space.decode(draw(wide_space))
        assert NetworkConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_harmonics_become_a_tuple_so_that_configs_hash():
    block = BlockConfig(basis="cosine", harmonics=[2, 3])
    assert block.harmonics == (2, 3)
    assert hash(block) == hash(BlockConfig(basis="cosine", harmonics=(2, 3)))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"basis": "cosine"}, r"basis \(='cosine'\) and harmonics \(=None\) must be given together$"),
        ({"harmonics": (2, 2)}, r"basis \(=None\) and harmonics \(=\(2, 2\)\) must be given together$"),
        ({"allocation": "filter"}, r"allocation \(='filter'\) must be given together with harmonics, its budget$"),
        ({"allocation": "all", "basis": "cosine", "harmonics": (2, 2)}, r"allocation \(='all'\) must be filter,"),
        ({"basis": "sine", "harmonics": (3, 3)}, r"basis \(='sine'\) must be cosine or chebyshev, or FAMILY@POINTS"),
        ({"basis": ["cosine"], "harmonics": (3, 3)}, r"basis \(=\['cosine'\]\) must be cosine or"),
        ({"basis": "cosine", "harmonics": (2,)}, r"harmonics \(=\(2,\)\) must be two whole numbers of at least 1"),
        ({"basis": "cosine", "harmonics": (2, 0)}, r"harmonics \(=\(2, 0\)\) must be two whole numbers"),
        ({"basis": "cosine", "harmonics": (2, 1.0)}, r"harmonics \(=\(2, 1\.0\)\) must be two whole numbers"),
        ({"basis": "cosine", "harmonics": (True, 1)}, r"harmonics \(=\(True, 1\)\) must be two whole numbers"),
        ({"basis": "cosine", "harmonics": 2}, r"harmonics \(=2\) must be two whole numbers"),
        ({"basis": "cosine", "harmonics": "22"}, r"harmonics \(=22\) must be two whole numbers"),
        ({"pruning_rate": 0.0}, r"pruning_rate \(=0\.0\) must be between 0 and 1, or left out$"),
        ({"pruning_rate": 1}, r"pruning_rate \(=1\) must be between"),
        ({"pruning_rate": float("nan")}, r"pruning_rate \(=nan\) must be between"),
        ({"pruning_rate": "half"}, r"pruning_rate \(='half'\) must be between"),
        ({"groups": 0}, r"groups \(=0\) must be a whole number from 1 "),
        ({"groups": -2}, r"groups \(=-2\) must be a whole number"),
        ({"groups": 2.0}, r"groups \(=2\.0\) must be a whole number"),
        ({"transform": "spin"}, r"transform \(='spin'\) must be one of scalar, rotation, affine, zero, or left out$"),
        ({"bits": 0}, r"bits \(=0\) must be a whole number from 1 to 16, or left out$"),
        ({"bits": 17}, r"bits \(=17\) must be a whole number"),
        ({"bits": "8"}, r"bits \(='8'\) must be a whole number"),
        ({"exponent_block": 0}, r"exponent_block \(=0\) must be a whole number from 1 to 128, or left out$"),
        ({"exponent_block": 129}, r"exponent_block \(=129\) must be a whole number"),
        ({"exponent_axis": "row"}, r"exponent_axis \(='row'\) must be one of flat, filter, channel, or left out$"),
        ({"exponent_axis": []}, r"exponent_axis \(=\[\]\) must be one of flat, filter, channel, or left out$"),
        ({"activation_bits": 0}, r"activation_bits \(=0\) must be a whole number from 1 to 16, or left out$"),
        ({"activation_block": 0}, r"activation_block \(=0\) must be a whole number from 1 to 128, or left out$"),
        ({"activation_block": 129}, r"activation_block \(=129\) must be a whole number"),
        (
            {"bits": 8, "activation_block": 16},
            r"activation_block \(=16\) must be given together with activation_bits, as bits are those of stored ",
        ),
        ({"scale": "float8"}, r"scale \(='float8'\) must be bfloat16, of 7 bits at most, or left out$"),
        ({"scale": "bfloat16", "bits": 8}, r"scale \(='bfloat16'\) must be bfloat16, of 7 bits at most, or left out$"),
        ({"arithmetic": "int4"}, r"arithmetic \(='int4'\) must be one of float, int8, or left out$"),
    ],
)
def test_bad_knobs_are_refused_in_python_and_in_json(knobs, message):
    with pytest.raises(UsageError, match=message):
        BlockConfig(**knobs)
    with pytest.raises(UsageError, match=message):
        NetworkConfig.from_json({"blocks": {"layer1": knobs}})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (5, r"config \(=5\) must be a mapping with the keys blocks, minimum_templates$"),
        ({"block": {}}, r"key \(='block'\) of config must be one of blocks, minimum_templates$"),
        ({"blocks": [1]}, r"blocks \(=\[1\]\) must be a mapping of block names to knobs$"),
        ({"blocks": None}, r"blocks \(=None\) must be a mapping"),
        ({"blocks": {"a": 3}}, r"block 'a' \(=3\) must be a mapping with the keys activation_bits, "),
        (
            {"blocks": {"a": {"bit": 3}}},
            r"key \(='bit'\) of block 'a' must be one of activation_bits, activation_block, ",
        ),
        ({"minimum_templates": 0}, r"minimum_templates \(=0\) must be a whole number of at least 1$"),
        ({"minimum_templates": 2.5}, r"minimum_templates \(=2\.5\) must be a whole number"),
        ({"minimum_templates": "8"}, r"minimum_templates \(='8'\) must be a whole number"),
    ],
)
def test_json_that_is_no_config_is_refused(data, message):
    with pytest.raises(UsageError, match=message):
        NetworkConfig.from_json(data)
