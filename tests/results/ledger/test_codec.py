import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from layers.errors import OvertoneError
from results.ledger.codec import decode, encode, select_columns
from results.schema import LEDGER_VERSION, SCHEMA, TrialRow, to_records, to_table
from tests.results.conftest import ASSETS, BLOCKS, HISTORY


def _decode(table: pa.Table) -> pa.Table:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return decode(sink.getvalue().to_pybytes(), study="demo", path="runs/x.parquet")


def test_rows_come_back_as_they_went_in(random_rows):
    table = to_table(random_rows(30))
    assert decode(encode(table), study="demo", path="x").equals(table)


def test_file_of_version_2_opens():
    """Written by `encode`, like the file of any trial, of a trial that another study had run."""
    table = decode((ASSETS / "trial-v2.parquet").read_bytes(), study="old", path="old")
    assert table.schema == SCHEMA
    row = to_records(table)[0]
    metrics = {"val_top1": 0.9375, "val_top5": 0.996, "val_loss": None}
    expected = {"ledger_version": 2, "study": "old", "trial": "0a1b2c3d4e", "status": "finished", "size_bytes": 20_000}
    expected |= {"score": 0.9375, "score_name": "val_top1", "init_score": 0.5, "metrics": metrics}
    expected |= {"reused_from": "first", "latency_ms": 1.25, "latency_b64_ms": 20.5}
    expected |= {"latency_runtime": "onnxruntime", "latency_threads": 2, "latency_device": "AMD EPYC"}
    assert {name: row[name] for name in expected} == expected
    others = {"exponent_block": 8, "exponent_axis": "channel", "activation_bits": 8, "activation_block": 16}
    others |= {"arithmetic": "int8"}
    assert row["blocks"] == [BLOCKS[0], {**BLOCKS[1], "allocation": "filter", **others}]
    assert row["history"] == list(HISTORY)
    assert TrialRow.from_record(row).environment == '{"torch": "2.14.1"}'


@pytest.mark.parametrize("names", [["metrics"], ["trial", "history"], ["score", "study"]])
def test_columns_are_read_alone(random_rows, names):
    table = to_table(random_rows(10))
    assert select_columns(table, names, study="demo", path="x").equals(table.select(names))


def test_blocks_that_lack_another_knob_are_refused():
    column = pa.array([[{"block": "fc", "basis": None}]], type=pa.list_(pa.struct({"block": "str", "basis": "str"})))
    with pytest.raises(OvertoneError, match=r"'x': column 'blocks' holds list<.*> where the ledger holds list<"):
        select_columns(pa.table({"blocks": column}), ["blocks"], study="demo", path="x")


def test_history_without_metrics_is_refused():
    """The cast of pyarrow 26 would fill them with null."""
    fields = [field for field in SCHEMA.field("history").type.value_type if field.name != "metrics"]
    column = pa.array([[]], type=pa.list_(pa.struct(fields)))
    with pytest.raises(OvertoneError, match=r"'x': column 'history' holds list<.*> where the ledger holds list<"):
        select_columns(pa.table({"history": column}), ["history"], study="demo", path="x")


def test_types_that_others_write_are_cast(make_row):
    """Such as pandas' large strings and lists."""
    table = to_table([make_row()])
    large = pa.large_list(SCHEMA.field("history").type.value_type)
    other = table.set_column(SCHEMA.get_field_index("history"), "history", table.column("history").cast(large))
    other = other.set_column(2, "trial", table.column("trial").cast(pa.large_string()))
    assert select_columns(other, SCHEMA.names, study="demo", path="x").equals(table)


def test_bytes_that_are_not_parquet_are_refused_by_name(np_rng, make_row):
    whole = encode(to_table([make_row()]))
    for data in (b"", np_rng.bytes(200), whole[: len(whole) // 2]):
        with pytest.raises(OvertoneError, match=r"^'runs/x.parquet' is not a readable Parquet file: [^\n]+$"):
            decode(data, study="demo", path="runs/x.parquet")


def test_foreign_parquet_is_refused_by_name(make_row):
    with pytest.raises(OvertoneError, match=r"'runs/x\.parquet' is not a ledger file of Overtone: it has no column"):
        _decode(pa.table({"a": [1]}))
    with pytest.raises(OvertoneError, match="its ledger_version is no positive integer"):
        _decode(pa.table({"ledger_version": ["one"]}))
    with pytest.raises(OvertoneError, match="it has no column 'score'"):
        _decode(to_table([make_row()]).drop_columns(["score"]))


def test_column_of_another_type_is_refused(make_row):
    table = to_table([make_row()]).drop_columns(["seed"]).append_column("seed", pa.array(["zero"]))
    with pytest.raises(OvertoneError, match="column 'seed' holds string where the ledger holds int64"):
        _decode(table)


def test_newer_version_is_refused(make_row):
    with pytest.raises(
        OvertoneError, match=f"has version {LEDGER_VERSION + 1}, newer than {LEDGER_VERSION}: update overtone"
    ):
        _decode(to_table([make_row(ledger_version=LEDGER_VERSION + 1)]))


def test_rows_of_when_bits_rounded_inputs_too_are_refused(make_row):
    rows = [make_row(number=0), make_row(number=1, ledger_version=1)]
    with pytest.raises(
        OvertoneError, match=r"^'runs/x\.parquet' has version 1, older than 2: bits rounded the layers' in"
    ):
        _decode(to_table(rows))


def test_row_of_a_prerelease_is_refused(make_row):
    table = to_table([make_row()])
    names = ["schema_version" if name == "ledger_version" else name for name in table.column_names]
    with pytest.raises(OvertoneError, match=r"^'runs/x\.parquet' is from a pre-release of Overtone \(key 'schema_ver"):
        _decode(table.rename_columns(names))
