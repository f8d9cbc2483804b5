import pytest

from layers.errors import UsageError
from results.formatting import (
    cost_axis,
    format_block,
    format_flops,
    format_kilobytes,
    format_megabytes,
    format_metrics,
    format_network,
    format_place,
    percent,
    unit_name,
)
from results.schema import block_records
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
    inputs = {**block, "exponent_axis": "filter", "activation_bits": 5, "activation_block": 8}
    assert format_network([inputs]) == "fc: 4 bits in blocks of 16 of a filter, inputs in 5 bits in blocks of 8"
    assert format_network([{**inputs, "exponent_block": None}]) == "fc: 4 bits, inputs in 5 bits in blocks of 8"
    assert format_network([{**inputs, "bits": None, "activation_block": None}]) == "fc: inputs in 5 bits"
    scaled = {"block": "fc", "bits": 3, "scale": "bfloat16"}
    assert format_network([scaled]) == "fc: 3 bits with bfloat16 scales"
    assert format_network([{**block, "arithmetic": "int8"}]) == "fc: 4 bits in blocks of 16, runs in int8"
    assert format_network([{"block": "fc", "arithmetic": "float"}]) == "uncompressed"
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


def test_figures_are_said_in_units_people_read():
    row = {"score": 0.92345, "size_bytes": 12_345, "flops": 1_234_567, "latency_ms": 1.2345}
    assert format_metrics(row) == "92.34 % · 12.3 kB · 1.23 MFLOPs · 1.23 ms"
    assert format_metrics({"latency_ms": 1.2345, "latency_b64_ms": 30.04}) == "1.23 ms · 30 ms for 64"
    assert cost_axis("latency_b64_ms") == ("latency at batch 64 (ms)", 1.0)
    assert format_metrics({"score": None, "size_bytes": 5_000_000}) == "5,000.0 kB"
    assert percent(None) == "-"
    with pytest.raises(UsageError, match=r"cost \(='speed'\) must be one of size_bytes, flops"):
        cost_axis("speed")


def test_a_latency_says_where_it_was_taken():
    assert format_place("onnxruntime", 1, "AMD EPYC") == "onnxruntime on AMD EPYC, 1 thread"
    assert format_place("torch", 4, "AMD EPYC") == "torch on AMD EPYC, 4 threads"
    assert format_place("torch", None, "NVIDIA H200") == "torch on NVIDIA H200"


def test_bytes_and_operations_have_one_text():
    assert [format_kilobytes(1_234_567), format_kilobytes(1_234_567, ".1f")] == ["1,234.6 kB", "1234.6 kB"]
    sizes = (999_999, 9_949_000, 10_000_000, 1_500_000_000)
    assert [format_megabytes(size) for size in sizes] == ["1.0 MB", "9.9 MB", "10 MB", "1.5 GB"]
    assert [format_flops(1_234_567_890), format_flops(1_234_567, ".3f")] == ["1,234.57 MFLOPs", "1.235 MFLOPs"]
    assert [unit_name(cost) for cost in ("size_bytes", "flops", "latency_b64_ms")] == ["kB", "MFLOPs", "ms for 64"]
