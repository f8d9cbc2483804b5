"""A query's data frame as bytes: JSON, CSV or Parquet."""

import io
import json
import math
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from layers.errors import UsageError
from results.schema import SCHEMA

__all__ = ["serialize"]


def serialize(frame: pd.DataFrame, format: str) -> bytes:
    """Return the frame as `json` (an array of objects; missing and non-finite values are null), `csv` or `parquet`.

    Times are ISO 8601 in JSON and CSV; lists and maps (blocks, history, metrics) are JSON inside a CSV cell.
    """
    writers = {"json": _json, "csv": _csv, "parquet": _parquet}
    if format not in writers:
        raise UsageError(f"format (={format!r}) must be one of {', '.join(writers)}")
    return writers[format](frame)


def _json(frame: pd.DataFrame) -> bytes:
    return (json.dumps(_records(frame), indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _csv(frame: pd.DataFrame) -> bytes:
    cells = [{name: _cell(value) for name, value in record.items()} for record in _records(frame)]
    return pd.DataFrame(cells, columns=frame.columns, dtype=object).to_csv(index=False, lineterminator="\n").encode()


def _parquet(frame: pd.DataFrame) -> bytes:
    sink = io.BytesIO()
    arrays = [_arrow(frame.iloc[:, index], str(name)) for index, name in enumerate(frame.columns)]
    pq.write_table(pa.Table.from_arrays(arrays, names=[str(name) for name in frame.columns]), sink)
    return sink.getvalue()


def _arrow(column: "pd.Series[Any]", name: str) -> pa.Array | pa.ChunkedArray:
    """Return the column as Arrow; lists and maps keep the ledger's type, which pandas forgets."""
    nested = column.dtype == object and name in ("blocks", "history", "metrics")
    kind = SCHEMA.field(name).type if nested else None
    return pa.array(column, type=kind, from_pandas=True)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    columns = [[_plain(value) for value in frame.iloc[:, index]] for index in range(frame.shape[1])]
    return [dict(zip(frame.columns, row, strict=True)) for row in zip(*columns, strict=True)]


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value


def _plain(value: Any) -> Any:
    """Return the value as JSON can hold it: no NaN, no NaT, no NumPy and no Arrow types."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool)) else str(value)
