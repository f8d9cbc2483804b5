"""The answer to a query: values as DuckDB has them, in types that Arrow, Parquet and pandas hold exactly.

What they have no type for is DuckDB's own text: intervals, UUIDs, enums, bit strings, times with zones, unions. So are
integers of more than 38 digits, and dates and times that are infinite or outside of the years 1 to 9999. Sums of
integers, 128 bits wide in DuckDB, are 64 bits wide if all of a column fit, else decimals without a fraction.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    import pandas as pd
    from duckdb.sqltypes import DuckDBPyType

__all__ = ["Answer", "collect"]

_PLAIN = frozenset(
    [
        *("boolean", "tinyint", "smallint", "integer", "bigint", "utinyint", "usmallint", "uinteger", "ubigint"),
        *("float", "double", "decimal", "blob"),
    ]
)
_WIDE = frozenset(["hugeint", "uhugeint", "bignum"])
_TIMES = {
    "date": "DATE",
    "time": "TIME",
    "timestamp": "TIMESTAMP",
    "timestamp_s": "TIMESTAMP",
    "timestamp_ms": "TIMESTAMP",
    "timestamp_ns": "TIMESTAMP_NS",
    "timestamp with time zone": "TIMESTAMPTZ",
}
_WIDTHS = ("BIGINT", "DECIMAL(38, 0)", "VARCHAR")
_DAY_US = 86_400 * 10**6
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896
"""Days from 1970 to the first of year 1 and to the last of year 9999, as Python's dates have them."""
_INTERVAL = re.compile(r"(?:(-?\d+) days?)? ?(?:(-?)(\d+):(\d\d):(\d\d)(\.\d+)?)?")


@dataclass(frozen=True)
class Answer:
    """Rows and named columns; no name is there twice."""

    table: pa.Table
    intervals: frozenset[str] = frozenset()
    """Columns whose texts are intervals."""

    def frame(self) -> pd.DataFrame:
        """Return the answer as a pandas data frame that holds the same values.

        Integers and booleans with nulls have pandas' nullable types, intervals without months are `timedelta64`, and
        lists, structs and maps are Python lists and dictionaries.
        """
        import pandas as pd

        columns = {name: self._series(name) for name in self.table.column_names}
        return pd.DataFrame(columns, index=pd.RangeIndex(self.table.num_rows), columns=self.table.column_names)

    def _series(self, name: str) -> pd.Series[Any]:
        import pandas as pd

        column, kind = self.table.column(name), self.table.schema.field(name).type
        if name in self.intervals:
            lengths = [None if text is None else _length(text) for text in column.to_pylist()]
            if lengths.count(None) == column.null_count:
                return pd.Series(lengths, dtype="timedelta64[us]")
        if pa.types.is_nested(kind):
            value = _python(kind)
            return pd.Series([value(item) for item in column.to_pylist()], dtype=object)
        if pa.types.is_floating(kind) and column.null_count and pc.any(pc.is_nan(column)).as_py():
            return pd.Series(column.to_pylist(), dtype=object)  # NaN beside null
        series: pd.Series[Any] = column.to_pandas(types_mapper=_masked if column.null_count else None)
        return series


def collect(connection: duckdb.DuckDBPyConnection, relation: duckdb.DuckDBPyRelation) -> Answer:
    """Return what a relation yields; it is run once. Repeated names become `a`, `a_1`, as DuckDB renames them."""
    connection.execute("CREATE SCHEMA kept")
    relation.create("kept.answer")
    kept = connection.table("kept.answer")
    columns = {name: _column(kept, name, kind) for name, kind in zip(kept.columns, kept.types, strict=True)}
    intervals = frozenset(name for name, kind in zip(kept.columns, kept.types, strict=True) if kind.id == "interval")
    return Answer(pa.table(columns), intervals)


def _column(relation: duckdb.DuckDBPyRelation, name: str, kind: DuckDBPyType) -> pa.ChunkedArray:
    """Return a column in the narrowest types that hold all of its values."""
    targets = dict.fromkeys(_target(kind, level) for level in range(len(_WIDTHS)))
    for target in targets:
        try:
            column = relation.project(f"CAST({_quoted(name)} AS {target})").to_arrow_table().column(0)
        except (duckdb.ConversionException, duckdb.OutOfRangeException):  # an integer is wider
            continue
        if not any(_is_beyond(chunk) for chunk in column.chunks):
            break
    return column


def _target(kind: DuckDBPyType, level: int) -> str:
    """Return the type to cast to, in SQL; each level holds more values than the one before, as text in the end."""
    if kind.id in _WIDE:
        return _WIDTHS[level]
    if kind.id in _TIMES:
        return _TIMES[kind.id] if _WIDTHS[level] != "VARCHAR" else "VARCHAR"
    if kind.id in _PLAIN:
        return str(kind)
    if kind.id not in ("list", "array", "struct", "map") or not kind.children:
        return "VARCHAR"
    inner = [
        (name, str(child) if name == "size" else _target(cast("DuckDBPyType", child), level))
        for name, child in kind.children
    ]
    if kind.id == "struct":
        return f"STRUCT({', '.join(f'{_quoted(name)} {text}' for name, text in inner)})"
    form = {"list": "{}[]", "array": "{}[{}]", "map": "MAP({}, {})"}[kind.id]
    return form.format(*(text for _, text in inner))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _is_beyond(array: pa.Array) -> bool:
    """Return whether a date or a time in it is one that Python has not."""
    kind = array.type
    if pa.types.is_struct(kind):
        return any(_is_beyond(field) for field in array.flatten())
    if pa.types.is_map(kind):
        return _is_beyond(array.keys) or _is_beyond(array.items)
    if pa.types.is_nested(kind):
        return _is_beyond(array.flatten())
    if pa.types.is_date(kind):
        return not _within(array.cast(pa.int32()), _FIRST_DAY, _LAST_DAY)
    if pa.types.is_time(kind):
        return not _within(array.cast(pa.int64()), 0, _DAY_US - 1)
    if pa.types.is_timestamp(kind):
        years = (_FIRST_DAY * _DAY_US, (_LAST_DAY + 1) * _DAY_US - 1)
        finite = (2 - 2**63, 2**63 - 2)  # of nanoseconds, which do not reach beyond Python's years
        return not _within(array.cast(pa.int64()), *(years if kind.unit == "us" else finite))
    return False


def _within(values: pa.Array, least: int, most: int) -> bool:
    found = pc.min_max(values).as_py()
    return found["min"] is None or (found["min"] >= least and found["max"] <= most)


def _length(text: str) -> timedelta | None:
    """Return the length of an interval that has no months."""
    match = _INTERVAL.fullmatch(text)
    if match is None:
        return None
    days, sign, hours, minutes, seconds, fraction = match.groups()
    time = timedelta(hours=int(hours or 0), minutes=int(minutes or 0), seconds=int(seconds or 0))
    time += timedelta(microseconds=int(f"{fraction or '.':0<7}"[1:]))
    return timedelta(days=int(days or 0)) + (-time if sign else time)


def _masked(kind: pa.DataType) -> Any:
    """Return pandas' type of integers or booleans with nulls, None for other types."""
    import pandas as pd

    if pa.types.is_integer(kind):
        return pd.array([], dtype=str(kind).replace("int", "Int").replace("u", "U")).dtype
    return pd.BooleanDtype() if pa.types.is_boolean(kind) else None


def _python(kind: pa.DataType) -> Callable[[Any], Any]:
    """Return the function that makes plain Python values of what `to_pylist` gives: maps become dictionaries."""
    if pa.types.is_map(kind):
        key, item = _python(kind.key_type), _python(kind.item_type)
        return lambda pairs: None if pairs is None else _mapping([(key(k), item(v)) for k, v in pairs])
    if pa.types.is_struct(kind):
        fields = {field.name: _python(field.type) for field in kind}
        return lambda value: None if value is None else {name: make(value[name]) for name, make in fields.items()}
    if pa.types.is_nested(kind):
        entry = _python(kind.value_type)
        return lambda values: None if values is None else [entry(value) for value in values]
    return lambda value: value


def _mapping(pairs: list[tuple[Any, Any]]) -> Any:
    """Return pairs as a dictionary, as they are if their keys cannot be those of one."""
    try:
        mapping = dict(pairs)
    except TypeError:
        return pairs
    return mapping if len(mapping) == len(pairs) else pairs
