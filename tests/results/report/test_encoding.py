import pyarrow as pa

from results.formatting import format_block
from results.report.encoding import encode_configs
from results.schema import SCHEMA
from tests.results.conftest import BLOCKS, UNSET

KNOBS = dict.fromkeys(["basis", "harmonics_y", "harmonics_x", "allocation", "pruning_rate", "groups", "transform"])
KNOBS |= dict.fromkeys(["bits", *UNSET])


def _column(blocks):
    return pa.chunked_array([pa.array(blocks, type=SCHEMA.field("blocks").type)])


def test_every_network_comes_back(np_rng):
    names = ["conv1", "layer1: a", "fc"]
    trials = []
    for _ in range(60):
        chosen = [name for name in names if np_rng.random() < 0.7]
        bits = [None if np_rng.random() < 0.3 else int(np_rng.integers(4, 7)) for _ in chosen]
        trials.append([{"block": name, **KNOBS, "bits": b} for name, b in zip(chosen, bits, strict=True)])
    trials.append([{"block": name, **KNOBS, "bits": 8} for name in names])
    encoded = encode_configs(_column(trials))
    assert encoded["names"] == names
    for t, blocks in enumerate(trials):
        decoded = []
        for b, name in enumerate(names):
            if encoded["rows"][b][t] >= 0:
                form = encoded["forms"][encoded["rows"][b][t]]
                decoded.append((f"{name}: {form['text']}", form["knobs"]))
        compressed = [block for block in blocks if block["bits"] is not None]
        assert decoded == [(format_block(block), {"bits": block["bits"]}) for block in compressed]
    assert len(encoded["forms"]) <= 3 * 5


def test_forms_that_differ_in_allocation_alone_are_two():
    series = {"block": "fc", **KNOBS, "basis": "cosine", "harmonics_y": 2, "harmonics_x": 3}
    encoded = encode_configs(_column([[series], [{**series, "allocation": "filter"}]]))
    assert encoded["rows"] == [[0, 1]]
    assert [form["text"] for form in encoded["forms"]] == ["cosine 2x3", "cosine 2x3 per filter"]
    assert [form["knobs"].get("allocation") for form in encoded["forms"]] == [None, "filter"]


def test_studies_without_blocks_or_trials():
    assert encode_configs(_column([])) == {"knobs": list(KNOBS), "names": [], "stages": [], "forms": [], "rows": []}
    assert encode_configs(_column([[], []]))["names"] == []
    both = pa.chunked_array([*_column([[]]).chunks, *_column([list(BLOCKS)]).chunks])
    assert encode_configs(both)["rows"] == [[-1, -1], [-1, 1]]
