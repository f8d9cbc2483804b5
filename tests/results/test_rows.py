from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from layers.errors import OvertoneError
from results.rows import decode, encode
from results.schema import SCHEMA, to_table

ASSETS = Path(__file__).parent / "assets"


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
    assert [block["block"] for block in table.column("blocks")[0].as_py()] == ["conv1", "layer1"]


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
    with pytest.raises(OvertoneError, match="schema version 2, newer than 1: update overtone"):
        _decode(to_table([make_row(schema_version=2)]))
