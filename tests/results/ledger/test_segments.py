import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from layers.errors import OvertoneError
from results.ledger.segments import Segment, encode_segment, is_segment, segment_name
from results.ledger.store import Store
from results.objectives import parse_objectives
from results.pareto.dominance import front_mask
from results.schema import LEDGER_VERSION, SCHEMA, to_table

OBJECTIVES = parse_objectives(["val_top1", "size_bytes"], score_name="val_top1")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


def _written(store, data):
    name = f"t/{segment_name()}"
    store.write_bytes(name, data)
    return name


def test_front_comes_first_and_every_row_comes_back(store, random_rows):
    table = to_table(random_rows(60))
    segment = Segment(store, _written(store, encode_segment(table, OBJECTIVES, ["a", "b"])), "demo")
    assert (segment.num_rows, segment.replaces) == (60, {"a", "b"})
    found = pa.concat_tables(segment.chunks(SCHEMA.names))
    assert found.sort_by("number").equals(table.sort_by("number"))
    members = front_mask(table, OBJECTIVES)
    first = set(found.slice(0, int(members.sum())).column("trial").to_pylist())
    assert first == set(table.filter(pa.array(members)).column("trial").to_pylist())


def test_rows_are_taken_by_their_positions(store, random_rows, np_rng):
    segment = Segment(store, _written(store, encode_segment(to_table(random_rows(60)), OBJECTIVES)), "demo")
    whole = pa.concat_tables(segment.chunks(SCHEMA.names))
    positions = np.sort(np_rng.choice(60, 20, replace=False))
    assert segment.take(positions).equals(whole.take(positions))
    assert segment.take(positions[:0]).num_rows == 0


def test_trial_cannot_be_taken_for_a_segment():
    assert is_segment(f"trials/study=demo/{segment_name()}")
    assert not is_segment("trials/study=demo/segment-0123.parquet")


@pytest.mark.parametrize("metadata", [None, "torn", "[]", "{}", '{"ledger_version": 1}'])
def test_foreign_segment_is_named(store, make_row, metadata):
    sink, table = pa.BufferOutputStream(), to_table([make_row()])
    pq.write_table(table.replace_schema_metadata({"overtone": metadata} if metadata else None), sink)
    with pytest.raises(OvertoneError, match=r"segment\..*\.parquet' is not a segment of Overtone"):
        Segment(store, _written(store, sink.getvalue().to_pybytes()), "demo")
    with pytest.raises(OvertoneError, match=r"segment\..*\.parquet' is not a readable Parquet file"):
        Segment(store, _written(store, b"torn"), "demo")


def test_newer_segment_is_refused(store, make_row):
    sink = pa.BufferOutputStream()
    metadata = {"overtone": json.dumps({"ledger_version": LEDGER_VERSION + 1, "replaces": []})}
    pq.write_table(to_table([make_row()]).replace_schema_metadata(metadata), sink)
    with pytest.raises(
        OvertoneError, match=f"has version {LEDGER_VERSION + 1}, newer than {LEDGER_VERSION}: update overtone"
    ):
        Segment(store, _written(store, sink.getvalue().to_pybytes()), "demo")


def test_segment_of_when_bits_rounded_inputs_too_is_refused(store, make_row):
    sink = pa.BufferOutputStream()
    metadata = {"overtone": json.dumps({"ledger_version": 1, "replaces": []})}
    pq.write_table(to_table([make_row()]).replace_schema_metadata(metadata), sink)
    with pytest.raises(
        OvertoneError, match=r"segment\..*\.parquet' has version 1, older than 2: bits rounded the layers"
    ):
        Segment(store, _written(store, sink.getvalue().to_pybytes()), "demo")


def test_segment_of_a_prerelease_is_refused(store, make_row):
    sink = pa.BufferOutputStream()
    metadata = {"overtone": json.dumps({"schema_version": 4, "replaces": []})}
    pq.write_table(to_table([make_row()]).replace_schema_metadata(metadata), sink)
    with pytest.raises(OvertoneError, match=r"segment\..*\.parquet' is from a pre-release of Overtone"):
        Segment(store, _written(store, sink.getvalue().to_pybytes()), "demo")
