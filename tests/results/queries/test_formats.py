import io
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from layers.errors import UsageError
from results.queries.answer import Answer
from results.queries.formats import serialize
from results.queries.query import ask, ask_sql
from results.schema import SCHEMA, to_records


def _refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is not JSON")


def test_json_is_valid_and_complete(full_ledger):
    found = json.loads(serialize(ask(full_ledger, "demo"), "json"), parse_constant=_refuse)
    expected = to_records(full_ledger.trials("demo"))
    for record in expected:
        for name in ("started_at", "finished_at"):
            record[name] = record[name].isoformat()
    own = {"val_top1", "init_top1", "val_top5", "val_loss"}
    assert [{name: value for name, value in record.items() if name not in own} for record in found] == expected
    assert [record["val_top1"] for record in found] == [record["score"] for record in expected]


def test_json_tells_null_from_what_is_no_number():
    table = pa.table({"a": [float("nan"), float("inf"), -float("inf"), None, 1.5]})
    found = json.loads(serialize(Answer(table), "json"), parse_constant=_refuse)
    assert [row["a"] for row in found] == ["NaN", "Infinity", "-Infinity", None, 1.5]
    assert serialize(Answer(table.slice(0, 0)), "json") == b"[]\n"


def test_csv_comes_back_with_lists_as_json(full_ledger):
    answer = ask(full_ledger, "demo", sort="size_bytes")
    frame = answer.frame()
    found = pd.read_csv(io.BytesIO(serialize(answer, "csv")))
    assert list(found.columns) == list(frame.columns)
    assert found["size_bytes"].tolist() == frame["size_bytes"].tolist()
    np.testing.assert_array_equal(found["val_top1"], frame["score"])
    assert json.loads(found["metrics"][0]) == frame["metrics"][0]
    assert json.loads(found["blocks"][0])[1]["basis"] == "cosine"
    header = serialize(ask(full_ledger, "demo", limit=0), "csv").decode()
    assert header == ",".join(frame.columns) + "\n"


def test_csv_tells_null_from_an_empty_text():
    assert serialize(Answer(pa.table({"a": ["", None, "x"]})), "csv") == b'a\n""\n\nx\n'


def test_parquet_comes_back_with_the_ledger_types(full_ledger):
    for answer in (ask(full_ledger, "demo", where="number < 5"), ask_sql(full_ledger, "demo", "FROM trials LIMIT 5")):
        found = pq.read_table(io.BytesIO(serialize(answer, "parquet")))
        for name in ("history", "metrics", "blocks", "started_at"):
            column = found.column(name).to_pylist()
            assert column == full_ledger.trials("demo").column(name).to_pylist()[:5]
    found = pq.read_table(io.BytesIO(serialize(ask(full_ledger, "demo"), "parquet")))
    assert found.select(SCHEMA.names).schema.equals(SCHEMA)


def test_columns_that_only_share_a_name_keep_their_type(full_ledger):
    answer = ask_sql(full_ledger, "demo", "select count(*) as blocks, avg(score) as metrics from trials")
    assert pq.read_table(io.BytesIO(serialize(answer, "parquet"))).column("blocks").to_pylist() == [40]


def test_unknown_format_is_refused(full_ledger):
    with pytest.raises(UsageError, match=r"format \(='xml'\) must be one of json, csv, parquet"):
        serialize(ask(full_ledger, "demo"), "xml")
