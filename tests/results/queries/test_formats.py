import io
import json
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from layers.errors import UsageError
from results.queries.formats import serialize
from results.queries.query import query, sql
from results.schema import SCHEMA, to_records


def _refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is not JSON")


def test_json_is_valid_and_complete(full_ledger):
    found = json.loads(serialize(query(full_ledger, "demo"), "json"), parse_constant=_refuse)
    expected = to_records(full_ledger.trials("demo"))
    for record in expected:
        for name in ("started_at", "finished_at"):
            record[name] = record[name].isoformat()
    own = {"val_top1", "init_top1", "val_top5", "val_loss"}
    assert [{name: value for name, value in record.items() if name not in own} for record in found] == expected
    assert [record["val_top1"] for record in found] == [record["score"] for record in expected]


def test_json_has_null_for_all_that_is_no_number():
    frame = pd.DataFrame({"a": [np.nan, np.inf, 1.5], "t": [pd.NaT, datetime(2025, 1, 1, tzinfo=UTC), None]})
    frame["nested"] = [np.array([1, 2]), {"x": float("nan")}, None]
    found = json.loads(serialize(frame, "json"), parse_constant=_refuse)
    assert [row["a"] for row in found] == [None, None, 1.5]
    assert [row["t"] for row in found] == [None, "2025-01-01T00:00:00+00:00", None]
    assert [row["nested"] for row in found] == [[1, 2], {"x": None}, None]
    assert serialize(frame.iloc[:0], "json") == b"[]\n"


def test_csv_comes_back_with_lists_as_json(full_ledger):
    frame = query(full_ledger, "demo", sort="size_bytes")
    found = pd.read_csv(io.BytesIO(serialize(frame, "csv")))
    assert list(found.columns) == list(frame.columns)
    assert found["size_bytes"].tolist() == frame["size_bytes"].tolist()
    np.testing.assert_array_equal(found["val_top1"], frame["score"])
    assert json.loads(found["metrics"][0]) == frame["metrics"][0]
    assert json.loads(found["blocks"][0])[1]["basis"] == "cosine"
    header = serialize(frame.iloc[:0], "csv").decode()
    assert header == ",".join(frame.columns) + "\n"


def test_parquet_comes_back_with_the_ledger_types(full_ledger):
    frame = query(full_ledger, "demo", where="number < 5")
    frame["blocks"] = [[] for _ in range(len(frame))]
    found = pq.read_table(io.BytesIO(serialize(frame, "parquet")))
    assert found.column_names == list(frame.columns)
    for name in ("blocks", "history", "metrics"):
        assert found.schema.field(name).type == SCHEMA.field(name).type
    for name in ("history", "metrics"):
        assert found.column(name).to_pylist() == full_ledger.trials("demo").column(name).to_pylist()[:5]


def test_columns_that_only_share_a_name_keep_their_type(full_ledger):
    frame = sql(full_ledger, "demo", "select count(*) as blocks, avg(score) as metrics from trials")
    assert pq.read_table(io.BytesIO(serialize(frame, "parquet"))).column("blocks").to_pylist() == [40]


def test_sql_answers_render_in_every_format(full_ledger):
    frame = sql(
        full_ledger, "demo", "select status, count(*) n, avg(val_top1) a, list(number) l from trials group by 1"
    )
    for format in ("json", "csv", "parquet"):
        assert len(serialize(frame, format)) > 20


def test_unknown_format_is_refused(full_ledger):
    with pytest.raises(UsageError, match=r"format \(='xml'\) must be one of json, csv, parquet"):
        serialize(query(full_ledger, "demo"), "xml")
