"""Queries of a study: filter, sort, front, columns, limit, or one query in DuckDB's SQL.

Conditions and SQL see the tables of `results.queries.tables` and nothing else: no files, no settings, and no
statements that are no query. Names of tables and columns may be in any case.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from layers.errors import OvertoneError, UsageError, first_line, translate_errors
from results.ledger.ledger import Ledger
from results.pareto.front import best, knee
from results.pareto.front import front as pareto_front
from results.queries.answer import Answer, collect
from results.queries.tables import (
    TABLES,
    larger_is_better,
    trials_and_sketches_table,
    trials_table,
    with_confidence,
)
from results.schema import SCHEMA, TrialStatus, to_records

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["QueryOptions", "ask", "ask_sql", "pick", "picks", "query", "sql"]

_LOCKED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": False,
    "python_enable_replacements": False,
    "autoload_known_extensions": False,
    "autoinstall_known_extensions": False,
    "allow_community_extensions": False,
}


_LISTS_TABLES = re.compile(r"\b(show|describe|desc|summarize|information_schema|pg_catalog|sqlite_master|duckdb_\w+)\b")
_SHORTEST_START = 6
"""Characters of an id that can stand for it."""


class QueryOptions(TypedDict, total=False):
    """What `ask` and `query` may be told beside the study."""

    front: bool
    sketches: bool
    where: str | None
    sort: str | None
    descending: bool | None
    limit: int | None
    columns: Sequence[str] | None


def query(ledger: Ledger, study: str, **options: Unpack[QueryOptions]) -> pd.DataFrame:
    """Return what `ask` answers, as a pandas data frame."""
    return ask(ledger, study, **options).frame()


def ask(
    ledger: Ledger,
    study: str,
    *,
    front: bool = False,
    sketches: bool = False,
    where: str | None = None,
    sort: str | None = None,
    descending: bool | None = None,
    limit: int | None = None,
    columns: Sequence[str] | None = None,
) -> Answer:
    """Return the trials that meet `where` (an SQL condition on columns), sorted and cut; all columns unless named.

    With `front`, return the front of what `where` leaves, and beside the ledger's columns those of
    `results.analysis.confidence`. With `sketches`, return those too, which were never trained and are on no front: rows
    of status `sketch`. `where` may ask the other tables, in subqueries. Without `sort`, trials are ordered
    by number and a front by size; scores, other good metrics and times sort highest first and all else lowest first,
    unless `descending` is set; nulls last. Raises `UsageError` for an unknown column (naming the closest), a bad
    condition, a limit below 0, a column that has no order, `descending` without `sort`, or `sketches` with `front`.
    """
    if sketches and front:
        raise UsageError(f"sketches (={sketches}) must be left out with front: they were never trained")
    if limit is not None and limit < 0:
        raise UsageError(f"limit (={limit}) must be 0 or more")
    if columns is not None and not columns:
        raise UsageError("columns (='') must name one column or more, with commas between them")
    if descending is not None and sort is None:
        raise UsageError(f"descending (={descending}) must come with sort, the column to sort by")
    table = _filtered(ledger, study, where, sketches=sketches)
    if front:
        table = with_confidence(ledger, study, table)
    names = [_column_name(name, table.column_names) for name in columns or table.column_names]
    if sort is not None:
        sort = _column_name(sort, table.column_names)
        if pa.types.is_nested(table.schema.field(sort).type):
            raise UsageError(f"sort (={sort!r}) must be a column of numbers, texts or times")
        if descending is None:
            descending = sort in larger_is_better(table, ledger.study(study))
        table = table.sort_by([(sort, "descending" if descending else "ascending"), ("number", "ascending")])
    shown = table.num_rows if limit is None else min(limit, table.num_rows)
    return Answer(table.slice(0, shown).select(list(dict.fromkeys(names))))


def sql(ledger: Ledger, study: str, statement: str) -> pd.DataFrame:
    """Return what `ask_sql` answers, as a pandas data frame."""
    return ask_sql(ledger, study, statement).frame()


def ask_sql(ledger: Ledger, study: str, statement: str) -> Answer:
    """Return the answer to one query (SELECT, WITH, FROM, VALUES, SHOW TABLES or DESCRIBE) over the tables of a study.

    They are those of `results.queries.tables`; only those that are named are made. Raises `UsageError` for any other
    statement and for a bad one.
    """
    statement = _utf8(statement)
    with _query_errors(f"the SQL {statement!r}"):
        parsed = duckdb.extract_statements(statement)
    if len(parsed) != 1 or parsed[0].type != duckdb.StatementType.SELECT:
        raise UsageError(
            f"the SQL {statement!r} is refused: exactly one SELECT is allowed (or WITH, FROM, VALUES, SHOW TABLES, "
            "DESCRIBE)"
        )
    ledger.study(study)
    tables = {name: TABLES[name](ledger, study) for name in _tables_in(statement)}
    with _connection(tables) as connection, _query_errors(f"the SQL {statement!r}", tables):
        return collect(connection, connection.sql(parsed[0]))


def picks(ledger: Ledger, study: str, which: str, *, where: str | None = None) -> list[dict[str, Any]]:
    """Return trials as records: all of the `front` of what `where` leaves, or the one that `pick` returns."""
    if which != "front":
        return [pick(ledger, study, which, where=where)]
    rows = to_records(pareto_front(_stored(ledger, study, where), ledger.objectives(study)))
    if not rows:
        raise OvertoneError("no finished trial is left to pick from")
    return rows


def pick(ledger: Ledger, study: str, which: str, *, where: str | None = None) -> dict[str, Any]:
    """Return one trial as a record: `best`, `knee`, or the trial of an id, of a number, or of the start of an id.

    A whole id comes before a number, and a number before a beginning, which must be of one trial alone and have 6
    characters or more. Only what `where` leaves is considered: `best` is its finished trial of the highest score,
    `knee` the knee of its front. A sketch has an id and no number, and is neither.
    """
    if which in ("best", "knee"):
        table = _stored(ledger, study, where)
        return best(table) if which == "best" else knee(table, ledger.objectives(study))
    table = _stored(ledger, study, where, sketches=True)
    rows = to_records(table.filter(_is_meant(table, which)))
    if len(rows) != 1:
        raise UsageError(f"pick (={which!r}) must be best, knee or an id {_unpicked(which, rows, table)}")
    return rows[0]


def _is_meant(table: pa.Table, which: str) -> pa.Array:
    """Return which rows an id, a number or the start of an id may mean."""
    is_trial = pc.not_equal(table.column("status"), TrialStatus.SKETCH.value)
    ids, numbers = table.column("trial"), pc.if_else(is_trial, table.column("number").cast(pa.string()), None)
    for mask in pc.equal(ids, which), pc.equal(numbers, which):
        if pc.any(mask).as_py():
            return mask
    return pc.starts_with(ids, which if len(which) >= _SHORTEST_START else f"{which}?")  # no id has a ?


def _unpicked(which: str, rows: Sequence[Mapping[str, Any]], table: pa.Table) -> str:
    """Return what `pick` takes, with examples, and why it took none."""
    ids = [row["trial"] for row in rows] or table.column("trial").to_pylist()
    close = ids if rows else difflib.get_close_matches(which, ids, n=3, cutoff=0.0)
    examples = f"such as {', '.join(close[:3])}" if close else "of a trial"
    others = f"its first {_SHORTEST_START} characters or more where no other id begins so, or a trial's number"
    return f"{examples}, {others}; it names {len(rows) or 'none'} of the trials"


def _stored(ledger: Ledger, study: str, where: str | None, *, sketches: bool = False) -> pa.Table:
    """Return the rows for which `where` holds, with the ledger's columns alone."""
    return _filtered(ledger, study, where, sketches=sketches).select(SCHEMA.names)


def _filtered(ledger: Ledger, study: str, where: str | None, *, sketches: bool = False) -> pa.Table:
    """Return the trials, and maybe the sketches, for which one SQL expression holds.

    DuckDB parses the expression by itself, so it cannot end early and go on with another statement. Its subqueries see
    the tables as they always are.
    """
    rows = trials_and_sketches_table(ledger, study) if sketches else trials_table(ledger, study)
    if where is None:
        return rows
    where = _utf8(where)
    tables = {name: TABLES[name](ledger, study) for name in _tables_in(where)}
    with _connection(tables) as connection, _query_errors(f"the condition {where!r}", {**tables, "trials": rows}):
        asked = connection.from_arrow(rows).set_alias("trials").filter(duckdb.SQLExpression(where))
        return asked.to_arrow_table().cast(rows.schema)


@contextmanager
def _connection(tables: Mapping[str, pa.Table]) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(":memory:", config=_LOCKED) as connection:
        for name, table in tables.items():
            connection.register(name, table)
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET lock_configuration = true")
        yield connection


@contextmanager
def _query_errors(query: str, tables: Mapping[str, pa.Table] | None = None) -> Iterator[None]:
    """Raise DuckDB's complaint as one sentence; for an unknown column with the closest ones there are."""
    with translate_errors(f"{query} failed", OSError, pa.ArrowException):
        try:
            yield
        except duckdb.Error as error:
            unknown = re.search(r'(?:Referenced|Values list) column "([^"]+)"|column named "([^"]+)"', str(error))
            if tables and unknown:
                columns = [name for table in tables.values() for name in table.column_names]
                _column_name(unknown[1] or unknown[2], columns)
            missing = re.search(r"Table with name (\S+) does not exist", str(error))
            if missing:
                raise UsageError(f"{query} is refused: table {missing[1]!r} is none of {', '.join(TABLES)}") from None
            raise UsageError(f"{query} is refused: {first_line(error).rstrip('.!')}") from None


def _utf8(text: str) -> str:
    """Return a text that was given where the locale has only ASCII, which is why Python kept its bytes apart."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise UsageError(f"the SQL {text!r} is refused: it is not UTF-8") from None


def _tables_in(statement: str) -> list[str]:
    """Return the tables that a text may ask; of one that lists tables, all."""
    words = statement.lower()
    return list(TABLES) if _LISTS_TABLES.search(words) else [name for name in TABLES if name in words]


def _column_name(name: str, columns: Sequence[str]) -> str:
    """Return the column of this name in any case; raise `UsageError` with the closest if there is none."""
    found = {column.lower(): column for column in reversed(columns)}
    if name.lower() not in found:
        close = difflib.get_close_matches(name.lower(), found, n=3, cutoff=0.3)
        shown = [found[other] for other in close] or list(dict.fromkeys(columns))
        raise UsageError(f"column (={name!r}) must be a column of the study; the closest are {', '.join(shown)}")
    return found[name.lower()]
