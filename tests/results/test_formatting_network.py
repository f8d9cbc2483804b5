from dataclasses import replace

from results.formatting_network import block_records, format_block, format_network
from spaces.config import BlockConfig, NetworkConfig
from tests.results.conftest import BLOCKS


def test_each_block_says_what_was_done_to_it():
    assert format_network(BLOCKS) == "conv1: uncompressed; layer1: cosine 2x3, 50 % templates, G=2, 8 bits"
    assert format_network(BLOCKS, "\n").count("\n") == 1


def test_knobs_that_do_nothing_are_left_out():
    block = {"block": "fc", "bits": 4, "exponent_block": 16, "groups": 1, "pruning_rate": None}
    assert format_network([block]) == "fc: 4 bits in blocks of 16"
    axes = {"filter": " of a filter", "channel": " of a filter's channels", "flat": "", None: ""}
    for axis, said in axes.items():
        assert format_network([{**block, "exponent_axis": axis}]) == f"fc: 4 bits in blocks of 16{said}"
    inputs = {**block, "exponent_axis": "filter", "activation_block": 8}
    assert format_network([inputs]) == "fc: 4 bits in blocks of 16 of a filter, inputs in blocks of 8"
    assert format_network([{**inputs, "exponent_block": None}]) == "fc: 4 bits, inputs in blocks of 8"
    assert format_network([{**inputs, "bits": None}]) == "uncompressed"
    assert format_network([{"block": "a", "pruning_rate": 0.75, "transform": "affine"}]) == "a: 25 % templates (affine)"


def test_coefficients_that_are_spent_by_filter_are_said_so():
    block = BlockConfig(basis="cosine", harmonics=(2, 3), allocation="filter", bits=8)
    (record,) = block_records(NetworkConfig(blocks={"layer1": block}).to_json())
    assert record["allocation"] == "filter"
    assert format_block(record) == "layer1: cosine 2x3 per filter, 8 bits"
    assert format_block({**record, "allocation": None}) == "layer1: cosine 2x3, 8 bits"


def test_network_without_any_knob_is_uncompressed():
    assert format_network(BLOCKS[:1]) == "uncompressed"
    assert format_network([]) == "uncompressed"


def test_config_becomes_the_rows_of_the_ledger():
    block = BlockConfig(basis="cosine", harmonics=(2, 3), pruning_rate=0.5, groups=2, transform="scalar", bits=8)
    config = NetworkConfig(blocks={"layer1": block}).to_json()
    assert block_records(config, ["conv1", "layer1"]) == list(BLOCKS)
    assert block_records(config) == [BLOCKS[1]]
    assert [record["block"] for record in block_records(config, ["layer2"])] == ["layer2", "layer1"]
    assert block_records({}) == []
    exponents = {"exponent_block": 16, "exponent_axis": "channel", "activation_block": 8}
    config = NetworkConfig(blocks={"layer1": replace(block, **exponents)}).to_json()
    assert block_records(config) == [{**BLOCKS[1], **exponents}]
