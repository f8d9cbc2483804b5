"""Questions to a study in one line: filter, sort, front, limit, or one SELECT in DuckDB's SQL.

The SQL sees four tables and nothing else: `trials` (one row a trial), `front` (its front), `epochs` (one row an epoch
of a trial) and `blocks` (one row a block of a trial). Files and settings are out of reach, and so are other statements.
"""

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from layers.errors import OvertoneError, UsageError
from results.front import best, knee
from results.front import front as pareto
from results.ledger import Ledger
from results.schema import SCHEMA

__all__ = ["pick", "query", "sql"]

_LOCKED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": False,
    "python_enable_replacements": False,
    "autoload_known_extensions": False,
    "autoinstall_known_extensions": False,
    "allow_community_extensions": False,
}
_LARGER_IS_BETTER = frozenset({"val_top1", "zero_shot_top1", "finished_at", "started_at"})


def query(
    ledger: Ledger,
    study: str,
    *,
    front: bool = False,
    where: str | None = None,
    sort: str | None = None,
    descending: bool | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """The trials that `where` (an SQL condition on their columns) leaves, sorted and cut; all columns of the ledger.

    With `front`, the front of what `where` leaves. Without `sort` trials come by number and a front by size; sorted
    accuracies and times come highest first and all else lowest first, unless `descending` says otherwise; nulls last.
    Raises UsageError for an unknown column (naming the closest), a bad condition, or a limit below 0.
    """
    _check_column(sort)
    if limit is not None and limit < 0:
        raise UsageError(f"limit (={limit}) must be 0 or more")
    table = _filtered(ledger, study, where)
    if front:
        table = pareto(table, ledger.objectives(study))
    if sort is not None:
        down = descending if descending is not None else sort in _LARGER_IS_BETTER
        order = "descending" if down else "ascending"
        table = table.sort_by([(sort, order), ("number", "ascending")])
    return _frame(table.slice(0, limit))


def sql(ledger: Ledger, study: str, statement: str) -> pd.DataFrame:
    """The answer to one SELECT over the tables `trials`, `front`, `epochs` and `blocks` of a study."""
    with _explained(f"the SQL {statement!r}"):
        parsed = duckdb.extract_statements(statement)
    if len(parsed) != 1 or parsed[0].type != duckdb.StatementType.SELECT:
        raise UsageError(f"the SQL {statement!r} is refused: exactly one SELECT is allowed")
    trials = ledger.trials(study)
    tables = {
        "trials": trials,
        "front": pareto(trials, ledger.objectives(study)),
        "epochs": _exploded(trials, "curve"),
        "blocks": _exploded(trials, "blocks"),
    }
    with _connection(tables) as connection, _explained(f"the SQL {statement!r}", tables):
        return _frame(connection.sql(parsed[0]).to_arrow_table())


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
    tables = {"trials": trials}
    with _connection(tables) as connection, _explained(f"the condition {where!r}", tables):
        return connection.table("trials").filter(duckdb.SQLExpression(where)).to_arrow_table().cast(SCHEMA)


@contextmanager
def _connection(tables: dict[str, pa.Table]) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(":memory:", config=_LOCKED) as connection:
        for name, table in tables.items():
            connection.register(name, table)
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET lock_configuration = true")
        yield connection


@contextmanager
def _explained(what: str, tables: dict[str, pa.Table] | None = None) -> Iterator[None]:
    """DuckDB's complaint as one sentence; an unknown column with the closest ones there are."""
    try:
        yield
    except duckdb.Error as error:
        unknown = re.search(r'(?:Referenced|Values list) column "([^"]+)"|column named "([^"]+)"', str(error))
        if tables and unknown:
            _check_column(unknown[1] or unknown[2], [name for table in tables.values() for name in table.column_names])
        text = str(error).splitlines()[0].rstrip(".!")
        raise UsageError(f"{what} is refused: {text}") from None
    except (OSError, pa.ArrowException) as error:
        raise OvertoneError(f"{what} failed: {str(error).splitlines()[0]}") from None


def _check_column(name: str | None, known: list[str] | None = None) -> None:
    columns = list(dict.fromkeys(known or SCHEMA.names))
    if name is not None and name not in columns:
        close = difflib.get_close_matches(name, columns, n=3, cutoff=0.3) or columns
        raise UsageError(f"column {name!r} is unknown; the closest are {', '.join(close)}")


def _frame(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _exploded(trials: pa.Table, column: str) -> pa.Table:
    """One row an entry of a list column, beside the trial's id and number."""
    values = trials.column(column).combine_chunks()
    parents = pc.list_parent_indices(values)
    entries = pc.list_flatten(values)
    fields = {field.name: pc.struct_field(entries, field.name) for field in entries.type}
    keys = {name: trials.column(name).take(parents) for name in ("trial", "number")}
    return pa.table({**keys, **fields})
