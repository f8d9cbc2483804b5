import pyarrow as pa

from results.formatting_network import format_block
from results.report.encoding import encode_configs
from results.schema import SCHEMA
from tests.results.conftest import BLOCKS

KNOBS = {"basis": None, "harmonics_y": None, "harmonics_x": None, "pruning_rate": None, "groups": None}
KNOBS |= {"allocation": None, "transform": None, "bits": None}
KNOBS |= {"exponent_block": None, "exponent_axis": None, "activation_block": None}


def _column(blocks):
    return pa.chunked_array([pa.array(blocks, type=SCHEMA.field("blocks").type)])


def test_every_network_comes_back(rng):
    names = ["conv1", "layer1: a", "fc"]
    trials = []
    for _ in range(60):
        chosen = [name for name in names if rng.random() < 0.7]
        bits = [None if rng.random() < 0.3 else int(rng.integers(4, 7)) for _ in chosen]
        trials.append([{"block": name, **KNOBS, "bits": b} for name, b in zip(chosen, bits, strict=True)])
    trials.append([{"block": name, **KNOBS, "bits": 8} for name in names])
    found = encode_configs(_column(trials))
    assert found["names"] == names
    for t, blocks in enumerate(trials):
        said = []
        for b, name in enumerate(names):
            if found["rows"][b][t] >= 0:
                form = found["forms"][found["rows"][b][t]]
                said.append((f"{name}: {form['text']}", form["knobs"]))
        asked = [block for block in blocks if block["bits"] is not None]
        assert said == [(format_block(block), {"bits": block["bits"]}) for block in asked]
    assert len(found["forms"]) <= 3 * 5


def test_forms_that_differ_in_allocation_alone_are_two():
    series = {"block": "fc", **KNOBS, "basis": "cosine", "harmonics_y": 2, "harmonics_x": 3}
    found = encode_configs(_column([[series], [{**series, "allocation": "filter"}]]))
    assert found["rows"] == [[0, 1]]
    assert [form["text"] for form in found["forms"]] == ["cosine 2x3", "cosine 2x3 per filter"]
    assert [form["knobs"].get("allocation") for form in found["forms"]] == [None, "filter"]


def test_studies_without_blocks_or_trials():
    assert encode_configs(_column([])) == {"names": [], "forms": [], "rows": []}
    assert encode_configs(_column([[], []]))["names"] == []
    both = pa.chunked_array([*_column([[]]).chunks, *_column([list(BLOCKS)]).chunks])
    assert encode_configs(both)["rows"] == [[-1, -1], [-1, 1]]
