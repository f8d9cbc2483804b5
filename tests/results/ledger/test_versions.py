"""A store that holds files of version 1 beside those of today: every way of reading gives rows of today's schema."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from results.formatting_network import format_network

from results.ledger.codec import encode
from results.ledger.ledger import Ledger
from results.ledger.segments import segment_name
from results.queries.query import query, sql
from results.report.encoding import encode_configs
from results.schema import LEDGER_VERSION, SCHEMA, TrialRow, to_table
from tests.results.conftest import ASSETS, BLOCKS, RECORD, version_1, version_2

FOLDER = "trials/study=demo"
FILTER = {**BLOCKS[1], "allocation": "filter"}
OLD = "0a1b2c3d4e"


def _old_segment(rows: list[TrialRow], older=version_1) -> bytes:
    """A segment as version 1, or another, wrote it."""
    sink = pa.BufferOutputStream()
    table = older(to_table(rows)).drop_columns(["study"])
    with pq.ParquetWriter(sink, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"overtone": json.dumps({"ledger_version": 1, "replaces": []})})
    return sink.getvalue().to_pybytes()


@pytest.fixture
def mixed(ledger, make_row):
    """Trial 0 is the file of version 1, 1 and 2 are files of today, 3 and 4 a segment of version 1, 5 to 7 of today."""
    ledger.store.write_bytes("studies/demo.json", json.dumps({**RECORD, "ledger_version": 1}).encode())
    ledger.store.write_bytes(f"{FOLDER}/{OLD}-0.parquet", (ASSETS / "trial-v1.parquet").read_bytes())
    rows = [make_row(number=n, size_bytes=20_000 - n, score=0.5 + n / 100) for n in range(8)]
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
    assert table.column("ledger_version").to_pylist() == [LEDGER_VERSION] * 8
    for columns in (["blocks"], ["trial", "blocks", "ledger_version"], ["history", "number"]):
        assert Ledger(mixed.store).trials("demo", columns).equals(table.select(columns))
    assert [TrialRow.from_record(record).number for record in table.to_pylist()] == list(range(8))
    assert encode_configs(table.column("blocks"))["rows"][1] == [1, 2, 2, 1, 1, 2, 2, 2]
    assert format_network(table.column("blocks")[0].as_py()).endswith("layer1: cosine 2x3, 50 % templates, G=2, 8 bits")


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
    assert json.loads(file.metadata.metadata[b"overtone"])["ledger_version"] == LEDGER_VERSION
    assert file.schema_arrow.field("blocks").type == SCHEMA.field("blocks").type
    assert np.unique(file.read(["ledger_version"]).column(0).to_numpy()).tolist() == [LEDGER_VERSION]
    for reader in (mixed, Ledger(mixed.store)):
        assert reader.trials("demo").equals(before)
        assert reader.front("demo").equals(front)


@pytest.mark.parametrize("older", [version_1, version_2])
def test_what_version_3_added_is_null_in_earlier_rows(ledger, make_row, older):
    """Trial 0 is an old file, 1 and 2 an old segment, 3 a file of today, 4 and 5 a segment of today."""
    rows = [
        make_row(number=n, score=0.5 + n / 100, val_top5=0.9 + n / 100, latency_ms=1.0, latency_b64_ms=70.0 - n)
        for n in range(6)
    ]
    ledger.store.write_bytes(f"{FOLDER}/{OLD}-0.parquet", encode(older(to_table(rows[:1]))))
    ledger.store.write_bytes(f"{FOLDER}/{segment_name()}", _old_segment(rows[1:3], older))
    ledger.append(rows[3])
    ledger.append_many(rows[4:])
    for reader in (ledger, Ledger(ledger.store)):
        table = reader.trials("demo", ["number", "val_top5", "latency_b64_ms"])
        assert table.column("val_top5").to_pylist() == [None] * 3 + [row.val_top5 for row in rows[3:]]
        assert table.column("latency_b64_ms").to_pylist() == [None, None, None, 67.0, 66.0, 65.0]
        assert reader.trials("demo").schema == SCHEMA
    best = query(ledger, "demo", sort="val_top5", columns=["number"], where="val_top1 > 0")
    assert best["number"].tolist() == [5, 4, 3, 0, 1, 2]
    assert query(ledger, "demo", where="latency_b64_ms < 67", columns=["number"])["number"].tolist() == [4, 5]
    epochs = sql(
        ledger, "demo", "SELECT number, count(val_top5) AS known, count(*) AS n FROM epochs GROUP BY 1 ORDER BY 1"
    )
    assert epochs["known"].tolist() == [0, 0, 0, 2, 2, 2]
    assert epochs["n"].tolist() == [2] * 6
    before = ledger.trials("demo")
    assert ledger.compact("demo").files_after == 1
    assert Ledger(ledger.store).trials("demo").equals(before)


def test_front_by_latency_of_a_batch_leaves_out_rows_that_lack_it(ledger, make_row):
    ledger.create_study("fast", {"score_name": "val_top1", "objectives": ["val_top1", "latency_b64_ms"]})
    rows = [make_row(study="fast", number=n, score=0.9 - n / 100, latency_b64_ms=9.0 - n) for n in range(4)]
    ledger.store.write_bytes("trials/study=fast/old.parquet", encode(version_2(to_table(rows[:1]))))
    for row in rows[1:]:
        ledger.append(row)
    assert ledger.front("fast").column("number").to_pylist() == [1, 2, 3]
