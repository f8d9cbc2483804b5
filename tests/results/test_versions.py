"""A store that holds files of version 1 beside those of today: every way of reading gives rows of today's schema."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from results.forms import encode_networks
from results.ledger import Ledger
from results.network import network_text
from results.query import query, sql
from results.schema import SCHEMA, SCHEMA_VERSION, TrialRow, to_table
from results.segments import segment_name
from tests.results.conftest import ASSETS, BLOCKS, RECORD, version_1

FOLDER = "trials/study=demo"
FILTER = {**BLOCKS[1], "allocation": "filter"}
OLD = "0a1b2c3d4e"


def _old_segment(rows: list[TrialRow]) -> bytes:
    """A segment as version 1 wrote it."""
    sink = pa.BufferOutputStream()
    table = version_1(to_table(rows)).drop_columns(["study"])
    with pq.ParquetWriter(sink, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"overtone": json.dumps({"schema_version": 1, "replaces": []})})
    return sink.getvalue().to_pybytes()


@pytest.fixture
def mixed(ledger, make_row):
    """Trial 0 is the file of version 1, 1 and 2 are files of today, 3 and 4 a segment of version 1, 5 to 7 of today."""
    ledger.store.write_bytes("studies/demo.json", json.dumps({**RECORD, "schema_version": 1}).encode())
    ledger.store.write_bytes(f"{FOLDER}/{OLD}-0.parquet", (ASSETS / "trial-v1.parquet").read_bytes())
    rows = [make_row(number=n, size_bytes=20_000 - n, val_top1=0.5 + n / 100) for n in range(8)]
    today = [TrialRow.from_record({**row.to_record(), "blocks": [FILTER]}) for row in rows]
    for row in today[1:3]:
        ledger.append(row)
    ledger.store.write_bytes(f"{FOLDER}/{segment_name()}", _old_segment(rows[3:5]))
    ledger.append_many(today[5:])
    return ledger


def _allocations(lists):
    return [[block["allocation"] for block in blocks] for blocks in lists.to_pylist()]


ALLOCATIONS = [[None, None], ["filter"], ["filter"], [None, None], [None, None], *[["filter"]] * 3]


def test_fixtures_are_of_version_1(mixed):
    schemas = [pq.read_schema(mixed.store.path_of(name)) for name in mixed.store.list(FOLDER, ".parquet")]
    knobs = [{field.name for field in schema.field("blocks").type.value_type} for schema in schemas]
    assert sorted("allocation" in names for names in knobs) == [False, False, True, True, True]


def test_whole_rows_and_projections_agree(mixed):
    table = mixed.trials("demo")
    assert table.schema == SCHEMA
    assert _allocations(table.column("blocks")) == ALLOCATIONS
    assert table.column("schema_version").to_pylist() == [SCHEMA_VERSION] * 8
    for columns in (["blocks"], ["trial", "blocks", "schema_version"], ["curve", "number"]):
        assert Ledger(mixed.store).trials("demo", columns).equals(table.select(columns))
    assert [TrialRow.from_record(record).number for record in table.to_pylist()] == list(range(8))
    assert encode_networks(table.column("blocks"))["rows"][1] == [1, 2, 2, 1, 1, 2, 2, 2]
    assert network_text(table.column("blocks")[0].as_py()).endswith("layer1: cosine 2x3, 50 % templates, G=2, 8 bits")


def test_front_takes_members_of_both(mixed):
    front = mixed.front("demo")
    assert front.schema == SCHEMA
    assert set(front.column("trial").to_pylist()) == {OLD, "t000000007"}
    assert dict(zip(front.column("trial").to_pylist(), _allocations(front.column("blocks")), strict=True)) == {
        OLD: [None, None],
        "t000000007": ["filter"],
    }
    assert mixed.write_front("demo").equals(front)
    assert Ledger(mixed.store).front("demo").equals(front)


def test_queries_see_the_knob_of_all_trials(mixed):
    found = sql(mixed, "demo", "SELECT number, block, allocation FROM blocks ORDER BY number, block")
    rows = [(n, name) for n, names in enumerate(ALLOCATIONS) for name in (("conv1", "layer1")[-len(names) :])]
    assert list(zip(found["number"], found["block"], strict=True)) == rows
    assert found["allocation"].notna().tolist() == [number in (1, 2, 5, 6, 7) for number, _ in rows]
    counts = sql(mixed, "demo", "SELECT allocation, count(*) AS n FROM blocks GROUP BY 1 ORDER BY 1 NULLS LAST")
    assert counts["n"].tolist() == [5, 6]
    assert query(mixed, "demo", columns=["number"], where="blocks[1].allocation = 'filter'")["number"].tolist() == [
        *(1, 2, 5, 6, 7)
    ]


def test_compaction_makes_one_file_of_today(mixed):
    before, front = mixed.trials("demo"), mixed.front("demo")
    done = mixed.compact("demo")
    assert (done.files_before, done.files_after, done.rows_written) == (5, 1, 8)
    (name,) = mixed.store.list(FOLDER, ".parquet")
    file = pq.ParquetFile(mixed.store.path_of(name))
    assert json.loads(file.metadata.metadata[b"overtone"])["schema_version"] == SCHEMA_VERSION
    assert file.schema_arrow.field("blocks").type == SCHEMA.field("blocks").type
    assert np.unique(file.read(["schema_version"]).column(0).to_numpy()).tolist() == [SCHEMA_VERSION]
    for reader in (mixed, Ledger(mixed.store)):
        assert reader.trials("demo").equals(before)
        assert reader.front("demo").equals(front)
