"""Queries of a study: filter, sort, front, columns, limit, or one SELECT in DuckDB's SQL.

The SQL sees the tables of `results.queries.tables` and nothing else: no files, no settings, and no other statements.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from layers.errors import OvertoneError, UsageError, first_line, translate_errors
from results.ledger.ledger import Ledger
from results.pareto.front import best, knee
from results.pareto.front import front as pareto_front
from results.queries.tables import TABLES, baseline_table, larger_is_better, trials_table, with_confidence
from results.schema import SCHEMA, to_records

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["pick", "picks", "query", "sql"]

_LOCKED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": False,
    "python_enable_replacements": False,
    "autoload_known_extensions": False,
    "autoinstall_known_extensions": False,
    "allow_community_extensions": False,
}


def query(
    ledger: Ledger,
    study: str,
    *,
    front: bool = False,
    where: str | None = None,
    sort: str | None = None,
    descending: bool | None = None,
    limit: int | None = None,
    columns: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return the trials that meet `where` (an SQL condition on columns), sorted and cut; all columns unless named.

    With `front`, return the front of what `where` leaves, and beside the ledger's columns those of
    `results.analysis.confidence`. `where` may use the one-row table `baseline` too. Without `sort`, trials are ordered
    by number and a front by size; scores, other good metrics and times sort highest first and all else lowest first,
    unless `descending` is set; nulls last. Raises `UsageError` for an unknown column (naming the closest), a bad
    condition, or a limit below 0.
    """
    if limit is not None and limit < 0:
        raise UsageError(f"limit (={limit}) must be 0 or more")
    if columns is not None and not columns:
        raise UsageError("columns (='') must name one column or more, with commas between them")
    table = _filtered(ledger, study, where)
    if front:
        table = with_confidence(ledger, study, table)
    for name in (*(columns or ()), *([sort] if sort is not None else ())):
        _check_column(name, table.column_names)
    if sort is not None:
        if descending is None:
            descending = sort in larger_is_better(table, ledger.study(study))
        table = table.sort_by([(sort, "descending" if descending else "ascending"), ("number", "ascending")])
    return _frame(table.slice(0, limit).select(list(dict.fromkeys(columns or table.column_names))))


def sql(ledger: Ledger, study: str, statement: str) -> pd.DataFrame:
    """Return the answer to one SELECT over the tables of a study; only tables that it names are made.

    They are those of `results.queries.tables`. Raises `UsageError` for any other statement and for a bad one.
    """
    with _query_errors(f"the SQL {statement!r}"):
        parsed = duckdb.extract_statements(statement)
    if len(parsed) != 1 or parsed[0].type != duckdb.StatementType.SELECT:
        raise UsageError(f"the SQL {statement!r} is refused: exactly one SELECT is allowed")
    ledger.study(study)
    tables = {name: make(ledger, study) for name, make in TABLES.items() if name in statement.lower()}
    with _connection(tables) as connection, _query_errors(f"the SQL {statement!r}", tables):
        return _frame(connection.sql(parsed[0]).to_arrow_table())


def picks(ledger: Ledger, study: str, which: str, *, where: str | None = None) -> list[dict[str, Any]]:
    """Return trials as records: all of the `front` of what `where` leaves, or the one that `pick` returns."""
    if which != "front":
        return [pick(ledger, study, which, where=where)]
    rows = to_records(pareto_front(_stored(ledger, study, where), ledger.objectives(study)))
    if not rows:
        raise OvertoneError("no finished trial is left to pick from")
    return rows


def pick(ledger: Ledger, study: str, which: str, *, where: str | None = None) -> dict[str, Any]:
    """Return one trial as a record: `best`, `knee`, or the trial of an id or of the unique start of an id.

    Only what `where` leaves is considered: `best` is its finished trial of the highest score, `knee` the knee of its
    front.
    """
    table = _stored(ledger, study, where)
    if which in ("best", "knee"):
        return best(table) if which == "best" else knee(table, ledger.objectives(study))
    matches = to_records(table.filter(pc.starts_with(table.column("trial"), which))) if which else []
    exact = [row for row in matches if row["trial"] == which] or matches
    if len(exact) != 1:
        ids = [row["trial"] for row in matches] or table.column("trial").to_pylist()
        close = ids if matches else difflib.get_close_matches(which, ids, n=3, cutoff=0.0)
        examples = f" such as {', '.join(close[:3])}" if close else " of a trial"
        raise UsageError(
            f"pick (={which!r}) must be best, knee or an id{examples}; it names {len(matches) or 'none'} of the trials"
        )
    return exact[0]


def _stored(ledger: Ledger, study: str, where: str | None) -> pa.Table:
    """Return the trials for which `where` holds, with the ledger's columns alone."""
    return _filtered(ledger, study, where).select(SCHEMA.names)


def _filtered(ledger: Ledger, study: str, where: str | None) -> pa.Table:
    """Return the trials for which one SQL expression holds.

    DuckDB parses the expression by itself, so it cannot end early and go on with another statement.
    """
    trials = trials_table(ledger, study)
    if where is None:
        return trials
    tables = {"trials": trials, "baseline": baseline_table(ledger, study)}
    with _connection(tables) as connection, _query_errors(f"the condition {where!r}", tables):
        return connection.table("trials").filter(duckdb.SQLExpression(where)).to_arrow_table().cast(trials.schema)


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
                _check_column(unknown[1] or unknown[2], columns)
            missing = re.search(r"Table with name (\S+) does not exist", str(error))
            if missing:
                raise UsageError(f"{query} is refused: table {missing[1]!r} is none of {', '.join(TABLES)}") from None
            raise UsageError(f"{query} is refused: {first_line(error).rstrip('.!')}") from None


def _check_column(name: str, columns: Sequence[str]) -> None:
    columns = list(dict.fromkeys(columns))
    if name not in columns:
        close = difflib.get_close_matches(name, columns, n=3, cutoff=0.3) or columns
        raise UsageError(f"column (={name!r}) must be a column of the study; the closest are {', '.join(close)}")


def _frame(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas(maps_as_pydicts="strict")
    return frame
