"""A query's answer as bytes: JSON, CSV or Parquet; and as texts for a table."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from layers.errors import UsageError
from results.queries.answer import Answer

__all__ = ["serialize", "texts"]

_Text = Callable[[Any], str]
_PRINTABLE = frozenset(range(32, 127)) - frozenset(b"\\'\"")


def serialize(answer: Answer, format: str) -> bytes:
    """Return the answer as `json` (an array of objects), `csv` or `parquet`, with all values as they are.

    Dates and times are ISO 8601 in JSON and CSV, and binary values are text with `\\xHH` for what is not plain ASCII.
    JSON has all digits of integers and decimals, and "NaN", "Infinity" and "-Infinity" in quotes, so that null is null.
    In CSV a null is empty, an empty text is `""`, and lists, structs and maps are JSON inside a cell.
    """
    writers = {"json": _json, "csv": _csv, "parquet": _parquet}
    if format not in writers:
        raise UsageError(f"format (={format!r}) must be one of {', '.join(writers)}")
    return writers[format](answer)


def texts(answer: Answer) -> list[list[str | None]]:
    """Return each row's values as texts, as CSV has them; None is null."""
    columns = []
    for name, column in zip(answer.table.column_names, answer.table.columns, strict=True):
        text = _cell_text(answer.table.schema.field(name).type)
        columns.append([None if value is None else text(value) for value in column.to_pylist()])
    return [list(row) for row in zip(*columns, strict=True)]


def _json(answer: Answer) -> bytes:
    table = answer.table
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        text, key = _json_text(column.type), json.dumps(name, ensure_ascii=False)
        columns.append([f"    {key}: {text(value)}" for value in column.to_pylist()])
    rows = ",\n".join("  {\n" + ",\n".join(row) + "\n  }" for row in zip(*columns, strict=True))
    return (f"[\n{rows}\n]\n" if rows else "[]\n").encode()


def _csv(answer: Answer) -> bytes:
    lines = [answer.table.column_names, *texts(answer)]
    return "".join(",".join(map(_csv_cell, line)) + "\n" for line in lines).encode()


def _csv_cell(text: str | None) -> str:
    if text is None:
        return ""
    return '"' + text.replace('"', '""') + '"' if not text or set(text) & set(',"\r\n') else text


def _parquet(answer: Answer) -> bytes:
    sink = io.BytesIO()
    pq.write_table(answer.table, sink)
    return sink.getvalue()


def _cell_text(kind: pa.DataType) -> _Text:
    """Return the function that writes a value of this type, which is not null, into a cell."""
    if pa.types.is_nested(kind):
        return _json_text(kind)
    if pa.types.is_floating(kind):
        return lambda value: _float_text(kind, value)
    if pa.types.is_boolean(kind) or pa.types.is_decimal(kind):
        return _json_text(kind)
    return _string(kind)


def _json_text(kind: pa.DataType) -> _Text:
    """Return the function that writes a value of this type, or None, as JSON."""
    write = _json_value(kind)
    return lambda value: "null" if value is None else write(value)


def _json_value(kind: pa.DataType) -> _Text:
    if pa.types.is_map(kind):
        key, item = _cell_text(kind.key_type), _json_text(kind.item_type)
        return lambda pairs: "{" + ", ".join(f"{_quoted(key(k))}: {item(v)}" for k, v in pairs) + "}"
    if pa.types.is_struct(kind):
        fields = [(field.name, f"{_quoted(field.name)}: ", _json_text(field.type)) for field in kind]
        return lambda value: "{" + ", ".join(head + text(value[name]) for name, head, text in fields) + "}"
    if pa.types.is_nested(kind):
        entry = _json_text(kind.value_type)
        return lambda values: "[" + ", ".join(map(entry, values)) + "]"
    if pa.types.is_boolean(kind):
        return lambda value: "true" if value else "false"
    if pa.types.is_integer(kind):
        return str
    if pa.types.is_decimal(kind):
        return lambda value: format(value, "f")
    if pa.types.is_floating(kind):
        return lambda value: _float_text(kind, value) if math.isfinite(value) else json.dumps(json.dumps(value))
    string = _string(kind)
    return lambda value: _quoted(string(value))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _float_text(kind: pa.DataType, value: float) -> str:
    """Return the shortest text that is read back as this number of 32 or of 64 bits."""
    return str(np.float32(value)) if pa.types.is_float32(kind) else repr(value)


def _string(kind: pa.DataType) -> _Text:
    if pa.types.is_temporal(kind):
        return lambda value: str(value.isoformat())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return lambda value: "".join(chr(byte) if byte in _PRINTABLE else f"\\x{byte:02X}" for byte in value)
    return str
