"""Questions to a study in one line: filter, sort, front, columns, limit, or one SELECT in DuckDB's SQL.

The SQL sees the tables of `results.queries.tables` and nothing else. Files and settings are out of reach, and so are
other statements.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from layers.errors import OvertoneError, UsageError
from results.ledger.ledger import Ledger
from results.pareto.front import best, knee
from results.pareto.front import front as pareto
from results.queries.tables import TABLES, baseline_table, with_confidence
from results.schema import SCHEMA

__all__ = ["pick", "picks", "query", "sql"]

_LOCKED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": False,
    "python_enable_replacements": False,
    "autoload_known_extensions": False,
    "autoinstall_known_extensions": False,
    "allow_community_extensions": False,
}
_LARGER_IS_BETTER = frozenset({"val_top1", "val_top1_mean", "val_top5", "init_score", "finished_at", "started_at"})


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
    """The trials that `where` (an SQL condition on their columns) leaves, sorted and cut; all columns unless named.

    With `front`, the front of what `where` leaves, and beside the ledger's columns those of
    `results.analysis.confidence`. `where` may ask the one-row table `baseline` too. Without `sort` trials come by
    number and a front by size; sorted accuracies and times come highest first and all else lowest first, unless
    `descending` says otherwise; nulls last. Raises UsageError for an unknown column (naming the closest), a bad
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
        down = descending if descending is not None else sort in _LARGER_IS_BETTER
        order = "descending" if down else "ascending"
        table = table.sort_by([(sort, order), ("number", "ascending")])
    return _frame(table.slice(0, limit).select(list(dict.fromkeys(columns or table.column_names))))


def sql(ledger: Ledger, study: str, statement: str) -> pd.DataFrame:
    """Answer one SELECT over the tables of a study (`results.queries.tables`); only those that it names are read."""
    with _explained(f"the SQL {statement!r}"):
        parsed = duckdb.extract_statements(statement)
    if len(parsed) != 1 or parsed[0].type != duckdb.StatementType.SELECT:
        raise UsageError(f"the SQL {statement!r} is refused: exactly one SELECT is allowed")
    ledger.study(study)
    tables = {name: make(ledger, study) for name, make in TABLES.items() if name in statement.lower()}
    with _connection(tables) as connection, _explained(f"the SQL {statement!r}", tables):
        return _frame(connection.sql(parsed[0]).to_arrow_table())


def picks(ledger: Ledger, study: str, which: str, *, where: str | None = None) -> list[dict[str, Any]]:
    """The trials that `which` means, as records: the whole `front` of what `where` leaves, or what `pick` finds."""
    if which != "front":
        return [pick(ledger, study, which, where=where)]
    rows: list[dict[str, Any]] = pareto(_filtered(ledger, study, where), ledger.objectives(study)).to_pylist()
    if not rows:
        raise OvertoneError("no finished trial is left to pick from")
    return rows


def pick(ledger: Ledger, study: str, which: str, *, where: str | None = None) -> dict[str, Any]:
    """One finished trial as a record: `best`, `knee`, or a trial's id (the start of it, where that names one alone).

    `best` and `knee` look at what `where` leaves: the most accurate, and the knee of the front of what is left.
    """
    table = _filtered(ledger, study, where)
    if which in ("best", "knee"):
        return best(table) if which == "best" else knee(table, ledger.objectives(study))
    found = table.filter(pc.starts_with(table.column("trial"), which)).to_pylist() if which else []
    exact = [row for row in found if row["trial"] == which] or found
    if len(exact) != 1:
        names = [row["trial"] for row in found] or table.column("trial").to_pylist()
        close = names if found else difflib.get_close_matches(which, names, n=3, cutoff=0.0)
        reason = f"names {len(found)} of its trials" if found else "names none of its trials"
        raise UsageError(f"pick {which!r} {reason}; allowed are best, knee or an id such as {', '.join(close[:3])}")
    return dict(exact[0])


def _filtered(ledger: Ledger, study: str, where: str | None) -> pa.Table:
    """The trials for which one SQL expression holds; DuckDB parses it alone, so it cannot end early and say more."""
    trials = ledger.trials(study)
    if where is None:
        return trials
    tables = {"trials": trials, "baseline": baseline_table(ledger, study)}
    with _connection(tables) as connection, _explained(f"the condition {where!r}", tables):
        return connection.table("trials").filter(duckdb.SQLExpression(where)).to_arrow_table().cast(SCHEMA)


@contextmanager
def _connection(tables: Mapping[str, pa.Table]) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(":memory:", config=_LOCKED) as connection:
        for name, table in tables.items():
            connection.register(name, table)
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET lock_configuration = true")
        yield connection


@contextmanager
def _explained(what: str, tables: Mapping[str, pa.Table] | None = None) -> Iterator[None]:
    """DuckDB's complaint as one sentence; an unknown column with the closest ones there are."""
    try:
        yield
    except duckdb.Error as error:
        unknown = re.search(r'(?:Referenced|Values list) column "([^"]+)"|column named "([^"]+)"', str(error))
        if tables and unknown:
            _check_column(unknown[1] or unknown[2], [name for table in tables.values() for name in table.column_names])
        missing = re.search(r"Table with name (\S+) does not exist", str(error))
        if missing:
            raise UsageError(f"{what} is refused: table {missing[1]!r} is none of {', '.join(TABLES)}") from None
        text = str(error).splitlines()[0].rstrip(".!")
        raise UsageError(f"{what} is refused: {text}") from None
    except (OSError, pa.ArrowException) as error:
        raise OvertoneError(f"{what} failed: {str(error).splitlines()[0]}") from None


def _check_column(name: str, known: Sequence[str]) -> None:
    columns = list(dict.fromkeys(known))
    if name not in columns:
        close = difflib.get_close_matches(name, columns, n=3, cutoff=0.3) or columns
        raise UsageError(f"column {name!r} is unknown; the closest are {', '.join(close)}")


def _frame(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas()
    return frame
