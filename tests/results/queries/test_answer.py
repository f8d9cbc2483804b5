"""Values of every type of DuckDB's, in all formats, against DuckDB's own texts."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from results.queries.answer import Answer, collect
from results.queries.formats import serialize, texts
from results.queries.query import ask_sql, query, sql

BIG = 2**127 - 1
LITERALS = [
    *("true", "(-128)::TINYINT", "9007199254740993", "18446744073709551615::UBIGINT", f"{BIG}::HUGEINT"),
    *(f"{2**128 - 1}::UHUGEINT", "(7::HUGEINT)", "(10::HUGEINT ** 20)::HUGEINT", "'9'::BIGNUM", f"'{9**99}'::BIGNUM"),
    *("1.10::DECIMAL(4, 2)", "-0.00001", "12345678901234567890.123456789::DECIMAL(38, 9)", "0.1", "1e300", "1e-7"),
    *("0.1::FLOAT", "16777217::FLOAT", "'nan'::DOUBLE", "'-inf'::DOUBLE", "'inf'::FLOAT", "-0.0::DOUBLE"),
    *("'a,\"b\"' || chr(10) || 'é'", "''", "'NULL'", "'007'", r"'\xAA\x00a\x27\x22\x5C'::BLOB", "'0101'::BIT"),
    *("uuid()", "'b'::ENUM('a', 'b')", "'[1, {}]'::JSON", "DATE '2024-02-29'", "DATE '0044-03-15 (BC)'"),
    *("'infinity'::DATE", "TIME '12:30:00.000001'", "TIME '24:00:00'", "'12:00:00+02:30'::TIMETZ"),
    *("TIMESTAMP '0099-01-01 00:00:00'", "TIMESTAMPTZ '2024-06-01 12:00:00.25+02'", "'-infinity'::TIMESTAMPTZ"),
    *("'1969-07-20 20:17:40'::TIMESTAMP_S", "'infinity'::TIMESTAMP_S", "'2024-01-01 00:00:00.5'::TIMESTAMP_MS"),
    *("'2024-01-01 00:00:00.123456789'::TIMESTAMP_NS", "'infinity'::TIMESTAMP_NS"),
    *(
        "INTERVAL '14 months -3 days 2 hours'",
        "INTERVAL '26 hours'",
        "INTERVAL '-1 microsecond'",
        "union_value(k := 1)",
    ),
]
NESTED = [
    ("[1, NULL, 9007199254740993]", [1, None, 9007199254740993]),
    ("[1.10, NULL]::DECIMAL(4, 2)[2]", [Decimal("1.10"), None]),
    ("{'a': 1::HUGEINT, 'b c\"': ['x', NULL]}", {"a": 1, 'b c"': ["x", None]}),
    ("MAP {'a': 1.5, 'b': NULL}", {"a": Decimal("1.5"), "b": None}),
    ("MAP {2: TRUE}", {2: True}),
    ("MAP {[1]: {'x': MAP {'y': 1::UTINYINT}}}", [([1], {"x": {"y": 1}})]),
    ("[DATE '2024-02-29', 'infinity'::DATE]", ["2024-02-29", "infinity"]),
    ("[DATE '2024-02-29']", [date(2024, 2, 29)]),
    (
        "{'took': INTERVAL '2 days', 'id': '00000000-0000-0000-0000-00000000000a'::UUID}",
        {"took": "2 days", "id": "00000000-0000-0000-0000-00000000000a"},
    ),
    ("[union_value(k := 1), NULL]", ["1", None]),
    ("{'a': {}, 'b': NULL}", {"a": "{}", "b": None}),
    ("[]", []),
    ("MAP {}", {}),
    ("ROW(1, 'x')", "(1, x)"),
    (f"[{BIG}::HUGEINT, 1]", [str(BIG), "1"]),
    ("[sum(2::BIGINT)]", [2]),
]


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"enable_external_access": False}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


def _answer(connection: duckdb.DuckDBPyConnection, statement: str) -> Answer:
    connection.execute("DROP SCHEMA IF EXISTS kept CASCADE")
    return collect(connection, connection.sql(statement))


def _iso(text: str) -> str:
    """Return DuckDB's text of a time as ISO 8601 has it."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d )?(\d\d:\d\d:\d\d)(\.\d+)?(\+00)?", text)
    if match is None or match[2] == "24:00:00":
        return text
    day, time, fraction, zone = match.groups(default="")
    digits = 9 if len(fraction) > 7 else 6
    return day.replace(" ", "T") + time + (f"{fraction:0<{digits + 1}}" if fraction else "") + (zone and "+00:00")


def _same(found: str, expected: str, kind: str) -> bool:
    if kind in ("FLOAT", "DOUBLE"):
        return float(found) == float(expected) or found.strip("-") == expected.strip("-") == "nan"
    return found == (
        _iso(expected) if (kind.startswith("TIME") and "ZONE" not in kind) or "STAMP" in kind else expected
    )


def _check_texts(answer: Answer, expected: list[str | None], kind: str) -> None:
    """Check table, CSV and JSON of one column `v` against DuckDB's texts."""
    cells = [row[0] for row in texts(answer)]
    assert [cell is None for cell in cells] == [text is None for text in expected]
    assert all(_same(a, b, kind) for a, b in zip(cells, expected, strict=True) if a is not None and b is not None)
    lines = serialize(answer, "csv").decode()
    assert [row[0] if row else "" for row in csv.reader(io.StringIO(lines))][1:] == [cell or "" for cell in cells]
    assert lines.count('""') >= cells.count("")
    found = [row["v"] for row in json.loads(serialize(answer, "json"), parse_float=str, parse_int=str)]
    names = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    for value, cell in zip(found, cells, strict=True):
        assert value == (names.get(cell, cell) if kind in ("FLOAT", "DOUBLE") and cell else _json_of(cell, kind))


def _json_of(cell: str | None, kind: str) -> Any:
    return cell == "true" if kind == "BOOLEAN" and cell is not None else cell


@pytest.mark.parametrize("literal", LITERALS)
def test_every_value_is_what_duckdb_writes(connection: duckdb.DuckDBPyConnection, literal: str) -> None:
    """In a table, CSV and JSON, with a null beside it; and from Parquet the same again."""
    statement = f"SELECT v FROM (SELECT {literal} AS v, 0 AS n UNION ALL SELECT NULL, 1) ORDER BY n"
    if "uuid()" in literal:
        statement = statement.replace("uuid()", f"'{'0' * 8}-0000-4000-8000-{'a' * 12}'::UUID")
    answer = _answer(connection, statement)
    kind = str(connection.sql(statement).types[0])
    expected = [row[0] for row in connection.execute(f"SELECT CAST(v AS VARCHAR) FROM ({statement})").fetchall()]
    _check_texts(answer, expected, kind)
    parquet = pq.read_table(io.BytesIO(serialize(answer, "parquet")))
    assert texts(Answer(parquet)) == texts(answer)
    again = connection.from_arrow(parquet).project("CAST(v AS VARCHAR)").fetchall()
    assert all(_same(a, b, kind) or a == b for (a,), b in zip(again, expected, strict=True) if b is not None)
    frame = answer.frame()
    assert frame["v"].isna().tolist()[1]
    whole = re.fullmatch(r"-?\d+", expected[0] or "")
    if whole and kind.endswith(("INT", "INTEGER")) and abs(int(whole[0])) < 2**64:
        assert int(frame["v"][0]) == int(whole[0])


@pytest.mark.parametrize(("literal", "expected"), NESTED)
def test_nested_values_are_lists_and_dictionaries(
    connection: duckdb.DuckDBPyConnection, literal: str, expected: Any
) -> None:
    answer = _answer(connection, f"SELECT {literal} AS v")
    assert answer.frame()["v"].tolist() == [expected]
    cell = next(csv.reader(io.StringIO(serialize(answer, "csv").decode().partition("\n")[2])))[0]
    assert texts(answer) == [[cell]]
    if isinstance(expected, (list, dict)):
        found = json.loads(serialize(answer, "json"))[0]["v"]
        assert found == json.loads(cell)
    assert Answer(pq.read_table(io.BytesIO(serialize(answer, "parquet")))).frame()["v"].tolist() == [expected]


_LIMITS = {"TINYINT": 2**7, "SMALLINT": 2**15, "INTEGER": 2**31, "BIGINT": 2**63, "HUGEINT": 2**127}
_COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    **{kind: st.integers(1 - most, most - 1) for kind, most in _LIMITS.items()},
    "UBIGINT": st.integers(0, 2**64 - 1),
    "DOUBLE": st.floats(),
    "FLOAT": st.floats(width=32),
    "DECIMAL(20, 7)": st.decimals(-(10**12), 10**12, places=7),
    "BOOLEAN": st.booleans(),
    "VARCHAR": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")),
    "BLOB": st.binary(),
    "DATE": st.dates(),
    "TIMESTAMP": st.datetimes(),
    "INTERVAL": st.timedeltas(timedelta(days=-9999), timedelta(days=9999)),
}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(_COLUMNS)).flatmap(lambda k: st.tuples(st.just(k), st.lists(st.none() | _COLUMNS[k]))))
def test_random_values_come_out_as_they_went_in(drawn: tuple[str, list[Any]]) -> None:
    kind, values = drawn
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE t (n INTEGER, v {kind})")
        if values:
            connection.executemany("INSERT INTO t VALUES (?, ?)", list(enumerate(values)))
        answer = _answer(connection, "SELECT v FROM t ORDER BY n")
        told = connection.execute("SELECT CAST(v AS VARCHAR) FROM t ORDER BY n").fetchall()
    _check_texts(answer, [row[0] for row in told], kind)
    parquet = pq.read_table(io.BytesIO(serialize(answer, "parquet")))
    assert texts(Answer(parquet)) == texts(answer)
    column = answer.frame()["v"]
    for found, value in zip(column.tolist(), values, strict=True):
        if value is None:
            assert pd.isna(found)
        elif kind in ("DOUBLE", "FLOAT"):
            assert np.array_equal(found, value, equal_nan=True)
        elif kind == "HUGEINT":
            assert int(found) == value
        else:
            assert found == value


def test_sums_of_integers_are_integers(connection: duckdb.DuckDBPyConnection) -> None:
    """64 bits wide if they fit, and never floats."""
    for added, kind in ((1, pa.int64()), (2**63 - 1, pa.decimal128(38, 0))):
        answer = _answer(connection, f"SELECT sum(x) AS v FROM (VALUES ({2**62}), (NULL), ({added})) t(x)")
        assert answer.table.schema.field("v").type == kind
        assert answer.frame()["v"].tolist() == [2**62 + added]
        assert json.loads(serialize(answer, "json")) == [{"v": 2**62 + added}]


def test_nulls_keep_the_type_of_a_column(connection: duckdb.DuckDBPyConnection) -> None:
    values = "(9007199254740993, TRUE, 1::UTINYINT, 'nan'::DOUBLE), (NULL, NULL, NULL, NULL)"
    frame = _answer(connection, f"SELECT * FROM (VALUES {values}) t(i, b, u, f)").frame()
    assert [str(frame[name].dtype) for name in "ibu"] == ["Int64", "boolean", "UInt8"]
    assert frame["i"][0] == 9007199254740993
    assert np.isnan(frame["f"][0])
    assert frame["f"][1] is None
    frame = _answer(connection, "SELECT * FROM (VALUES (1, TRUE, 1.5::DOUBLE)) t(i, b, f)").frame()
    assert [str(kind) for kind in frame.dtypes] == ["int32", "bool", "float64"]


def test_intervals_are_lengths_of_time_unless_they_have_months(connection: duckdb.DuckDBPyConnection) -> None:
    frame = _answer(connection, "SELECT INTERVAL '1 day -2 hours' AS a, INTERVAL '1 month' AS b").frame()
    assert frame["a"].tolist() == [timedelta(days=1, hours=-2)]
    assert frame["b"].tolist() == ["1 month"]


def test_repeated_names_lose_no_column(full_ledger) -> None:
    """DuckDB's own new names, in every format."""
    statement = "SELECT 1 AS a, 2 AS a, t.trial, b.trial FROM trials t JOIN blocks b USING (trial) LIMIT 1"
    answer = ask_sql(full_ledger, "demo", statement)
    names = ["a", "a_1", "trial", "trial_1"]
    assert list(answer.frame().columns) == names
    assert list(json.loads(serialize(answer, "json"))[0].values())[:2] == [1, 2]
    assert serialize(answer, "csv").decode().startswith("a,a_1,trial,trial_1\n1,2,")
    assert pq.read_table(io.BytesIO(serialize(answer, "parquet"))).column_names == names
    compared = "SELECT f.val_top1, b.val_top1 FROM front f, baseline b"
    frame = sql(full_ledger, "demo", compared)
    assert frame["val_top1"].tolist() == query(full_ledger, "demo", front=True)["val_top1"].tolist()
    assert set(frame["val_top1_1"]) == {0.97}


def test_a_query_is_run_once(connection: duckdb.DuckDBPyConnection) -> None:
    """A column that needs a second look is not drawn again."""
    answer = _answer(
        connection, f"SELECT x, ({BIG}::HUGEINT - (x * 0)::HUGEINT) AS y, x AS z FROM (SELECT random() AS x)"
    )
    assert answer.table.column("x").equals(answer.table.column("z"))


def test_frames_of_the_ledger_keep_times_and_counts(full_ledger) -> None:
    frame = query(full_ledger, "demo", columns=["started_at", "number", "seed", "blocks"])
    assert frame["started_at"][0] == datetime.fromisoformat("2025-01-01T00:00:00+00:00")
    assert frame["blocks"][0][1]["bits"] == 8
    assert frame["blocks"][0][0]["bits"] is None
    took = sql(
        full_ledger, "demo", "SELECT finished_at - started_at AS took, max(bits) AS bits FROM trials, blocks GROUP BY 1"
    )
    assert took["took"].tolist() == [timedelta(seconds=30)]
