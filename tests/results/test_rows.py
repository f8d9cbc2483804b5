import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from layers.errors import OvertoneError
from results.rows import conform, decode, encode
from results.schema import SCHEMA, to_table
from tests.results.conftest import ASSETS, BLOCKS, version_1


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
    assert table.column("schema_version").to_pylist() == [2]


def test_file_of_version_2_still_opens():
    """Written by `encode`, like the file of any trial; `layer1` is that of version 1, spent by filter."""
    table = decode((ASSETS / "trial-v2.parquet").read_bytes(), study="old", path="old")
    assert table.schema == SCHEMA
    assert table.select(["study", "trial", "status", "val_top1", "size_bytes"]).to_pylist() == [
        {"study": "old", "trial": "1b2c3d4e5f", "status": "finished", "val_top1": 0.9375, "size_bytes": 20_000}
    ]
    assert table.column("blocks").to_pylist() == [[BLOCKS[0], {**BLOCKS[1], "allocation": "filter"}]]
    assert table.column("schema_version").to_pylist() == [2]


def test_blocks_of_version_1_gain_a_null_wherever_lists_begin(rng):
    kind, old = SCHEMA.field("blocks").type, version_1(to_table([])).schema.field("blocks").type
    entry = {**dict.fromkeys(field.name for field in kind.value_type), "block": "fc"}
    lists = [[{**entry, "bits": int(bits)} for bits in rng.integers(2, 9, n)] for n in rng.integers(0, 4, 40)]
    lists = [None if rng.random() < 0.2 else one for one in lists] + [[None, entry], [], None]
    for column in (lists, lists[-1:], [[]], []):
        table = pa.table({"blocks": pa.array(column, type=old)})
        for start in (0, len(column) // 2):
            found = conform(table.slice(start), ["blocks"], study="demo", path="x").column("blocks")
            found.validate(full=True)
            assert found.equals(pa.chunked_array([pa.array(column[start:], type=kind)]))
    none = pa.table({"blocks": pa.chunked_array([], type=old)})
    assert conform(none, ["blocks"], study="demo", path="x").column("blocks").equals(pa.chunked_array([], type=kind))


def test_blocks_that_lack_another_knob_are_refused():
    column = pa.array([[{"block": "fc", "basis": None}]], type=pa.list_(pa.struct({"block": "str", "basis": "str"})))
    with pytest.raises(OvertoneError, match=r"'x': column 'blocks' holds list<.*> where the ledger holds list<"):
        conform(pa.table({"blocks": column}), ["blocks"], study="demo", path="x")


def test_bytes_that_are_not_parquet_are_refused_by_name(rng, make_row):
    whole = encode(to_table([make_row()]))
    for data in (b"", rng.bytes(200), whole[: len(whole) // 2]):
        with pytest.raises(OvertoneError, match=r"^'runs/x.parquet' is not a readable Parquet file: [^\n]+$"):
            decode(data, study="demo", path="runs/x.parquet")


def test_foreign_parquet_is_refused_by_name(make_row):
    with pytest.raises(OvertoneError, match=r"'runs/x\.parquet' is not a ledger file of Overtone: it has no column"):
        _decode(pa.table({"a": [1]}))
    with pytest.raises(OvertoneError, match="its schema_version is no positive integer"):
        _decode(pa.table({"schema_version": ["one"]}))
    with pytest.raises(OvertoneError, match="it has no column 'val_top1'"):
        _decode(to_table([make_row()]).drop_columns(["val_top1"]))


def test_column_of_another_type_is_refused(make_row):
    table = to_table([make_row()]).drop_columns(["seed"]).append_column("seed", pa.array(["zero"]))
    with pytest.raises(OvertoneError, match="column 'seed' holds string where the ledger holds int64"):
        _decode(table)


def test_newer_version_is_refused(make_row):
    with pytest.raises(OvertoneError, match="schema version 3, newer than 2: update overtone"):
        _decode(to_table([make_row(schema_version=3)]))
