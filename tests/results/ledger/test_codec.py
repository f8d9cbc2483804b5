import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from layers.errors import OvertoneError
from results.ledger.codec import decode, encode, select_columns
from results.schema import LEDGER_VERSION, SCHEMA, to_table
from tests.results.conftest import ASSETS, BLOCKS, CURVE, version_1, version_2, version_3


def _decode(table: pa.Table) -> pa.Table:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return decode(sink.getvalue().to_pybytes(), study="demo", path="runs/x.parquet")


def test_rows_come_back_as_they_went_in(random_rows):
    table = to_table(random_rows(30))
    assert decode(encode(table), study="demo", path="x").equals(table)


def test_file_of_version_1_still_opens():
    table = decode((ASSETS / "trial-v1.parquet").read_bytes(), study="old", path="old")
    assert table.schema == SCHEMA
    assert table.select(["study", "trial", "status", "val_top1", "size_bytes"]).to_pylist() == [
        {"study": "old", "trial": "0a1b2c3d4e", "status": "finished", "val_top1": 0.9375, "size_bytes": 20_000}
    ]
    assert table.column("blocks").to_pylist() == [list(BLOCKS)]
    _check_nulls_of_version_2(table)


def test_file_of_version_2_still_opens():
    """Written by `encode`, like the file of any trial; `layer1` is that of version 1, spent by filter."""
    table = decode((ASSETS / "trial-v2.parquet").read_bytes(), study="old", path="old")
    assert table.schema == SCHEMA
    assert table.select(["study", "trial", "status", "val_top1", "size_bytes"]).to_pylist() == [
        {"study": "old", "trial": "1b2c3d4e5f", "status": "finished", "val_top1": 0.9375, "size_bytes": 20_000}
    ]
    assert table.column("blocks").to_pylist() == [[BLOCKS[0], {**BLOCKS[1], "allocation": "filter"}]]
    _check_nulls_of_version_2(table)


def _check_nulls_of_version_2(table: pa.Table) -> None:
    assert table.column("ledger_version").to_pylist() == [LEDGER_VERSION]
    assert table.column("reused_from").to_pylist() == [None]
    assert table.select(["val_top5", "latency_b64_ms"]).to_pylist() == [{"val_top5": None, "latency_b64_ms": None}]
    assert table.column("history").to_pylist() == [[{**epoch, "val_top5": None} for epoch in CURVE]]


def test_file_of_version_3_still_opens():
    """Written by `encode`, like the file of any trial; `layer1` has an axis of its exponents, and blocks of inputs."""
    table = decode((ASSETS / "trial-v3.parquet").read_bytes(), study="old", path="old")
    assert table.schema == SCHEMA
    names = ["study", "trial", "val_top1", "val_top5", "latency_ms", "latency_b64_ms", "ledger_version"]
    assert list(table.select(names).to_pylist()[0].values()) == [
        "old",
        "2c3d4e5f6a",
        0.9375,
        0.996,
        1.25,
        20.5,
        LEDGER_VERSION,
    ]
    exponents = {"exponent_block": 8, "exponent_axis": "channel", "activation_block": 16}
    assert table.column("blocks").to_pylist() == [[BLOCKS[0], {**BLOCKS[1], "allocation": "filter", **exponents}]]
    assert table.column("history").to_pylist() == [list(CURVE)]
    assert table.column("reused_from").to_pylist() == [None]


def test_file_of_version_4_still_opens():
    """Written by `encode`, like the file of any trial, of a trial that another study had run."""
    table = decode((ASSETS / "trial-v4.parquet").read_bytes(), study="old", path="old")
    assert table.schema == SCHEMA
    names = ["study", "trial", "reused_from", "val_top1", "ledger_version"]
    assert list(table.select(names).to_pylist()[0].values()) == ["old", "3d4e5f6a7b", "first", 0.9375, LEDGER_VERSION]


def test_blocks_of_earlier_versions_gain_what_each_lacks(random_rows):
    table = to_table(random_rows(5))
    for old in (version_1(table), version_2(table)):
        knobs = {field.name for field in old.schema.field("blocks").type.value_type}
        assert not knobs & {"exponent_axis", "activation_block"}
        assert _decode(old).column("blocks").equals(table.column("blocks"))


def test_rows_of_version_3_were_run_for_their_own_study(random_rows):
    table = to_table(random_rows(5))
    assert _decode(version_3(table)).equals(table)


def test_columns_of_earlier_versions_are_read_alone(random_rows):
    table = to_table(random_rows(10))
    for old in (version_1(table), version_2(table)):
        for names in (["val_top5"], ["trial", "latency_b64_ms"], ["history"], ["reused_from"]):
            found = select_columns(old, names, study="demo", path="x")
            assert found.schema == pa.schema([SCHEMA.field(name) for name in names])
            assert found.num_rows == 10
        assert (
            select_columns(old, ["history"], study="demo", path="x").column("history").to_pylist()
            == [[{**epoch, "val_top5": None} for epoch in CURVE]] * 10
        )


def test_blocks_of_version_1_gain_a_null_wherever_lists_begin(np_rng):
    kind, old = SCHEMA.field("blocks").type, version_1(to_table([])).schema.field("blocks").type
    entry = {**dict.fromkeys(field.name for field in kind.value_type), "block": "fc"}
    lists = [[{**entry, "bits": int(bits)} for bits in np_rng.integers(2, 9, n)] for n in np_rng.integers(0, 4, 40)]
    lists = [None if np_rng.random() < 0.2 else one for one in lists] + [[None, entry], [], None]
    for column in (lists, lists[-1:], [[]], []):
        table = pa.table({"blocks": pa.array(column, type=old)})
        for start in (0, len(column) // 2):
            found = select_columns(table.slice(start), ["blocks"], study="demo", path="x").column("blocks")
            found.validate(full=True)
            assert found.equals(pa.chunked_array([pa.array(column[start:], type=kind)]))
    none = pa.table({"blocks": pa.chunked_array([], type=old)})
    assert (
        select_columns(none, ["blocks"], study="demo", path="x")
        .column("blocks")
        .equals(pa.chunked_array([], type=kind))
    )


def test_blocks_that_lack_another_knob_are_refused():
    column = pa.array([[{"block": "fc", "basis": None}]], type=pa.list_(pa.struct({"block": "str", "basis": "str"})))
    with pytest.raises(OvertoneError, match=r"'x': column 'blocks' holds list<.*> where the ledger holds list<"):
        select_columns(pa.table({"blocks": column}), ["blocks"], study="demo", path="x")


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
    with pytest.raises(OvertoneError, match="it has no column 'val_top1'"):
        _decode(to_table([make_row()]).drop_columns(["val_top1"]))


def test_column_of_another_type_is_refused(make_row):
    table = to_table([make_row()]).drop_columns(["seed"]).append_column("seed", pa.array(["zero"]))
    with pytest.raises(OvertoneError, match="column 'seed' holds string where the ledger holds int64"):
        _decode(table)


def test_newer_version_is_refused(make_row):
    with pytest.raises(
        OvertoneError, match=f"schema version {LEDGER_VERSION + 1}, newer than {LEDGER_VERSION}: update overtone"
    ):
        _decode(to_table([make_row(ledger_version=LEDGER_VERSION + 1)]))
