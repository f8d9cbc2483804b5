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
from results.schema import SCHEMA


def _refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is not JSON")


def test_json_is_valid_and_complete(full_ledger):
    found = json.loads(serialize(query(full_ledger, "demo"), "json"), parse_constant=_refuse)
    expected = full_ledger.trials("demo").to_pylist()
    for record in expected:
        for name in ("started_at", "finished_at"):
            record[name] = record[name].isoformat()
    assert found == expected


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
    assert list(found.columns) == SCHEMA.names
    assert found["size_bytes"].tolist() == frame["size_bytes"].tolist()
    np.testing.assert_array_equal(found["val_top1"], frame["val_top1"])
    assert json.loads(found["blocks"][0])[1]["basis"] == "cosine"
    header = serialize(frame.iloc[:0], "csv").decode()
    assert header == ",".join(SCHEMA.names) + "\n"


def test_parquet_comes_back_with_the_ledger_types(full_ledger):
    frame = query(full_ledger, "demo", where="number < 5")
    frame["blocks"] = [[] for _ in range(len(frame))]
    found = pq.read_table(io.BytesIO(serialize(frame, "parquet")))
    assert found.column_names == SCHEMA.names
    assert found.schema.field("blocks").type == SCHEMA.field("blocks").type
    assert found.column("history").to_pylist() == full_ledger.trials("demo").column("history").to_pylist()[:5]


def test_sql_answers_render_in_every_format(full_ledger):
    frame = sql(
        full_ledger, "demo", "select status, count(*) n, avg(val_top1) a, list(number) l from trials group by 1"
    )
    for format in ("json", "csv", "parquet"):
        assert len(serialize(frame, format)) > 20


def test_unknown_format_is_refused(full_ledger):
    with pytest.raises(UsageError, match="format 'xml' is unknown; allowed are json, csv, parquet"):
        serialize(query(full_ledger, "demo"), "xml")
