"""Ledger rows as the bytes of one Parquet file, and back.

The file leaves out the column `study`: the folder's name (`study=NAME`) holds it, which is what pandas, DuckDB and
Spark expect of a hive partition; it is added again on reading. The version of the schema is in every row. Rows of an
earlier version are brought to the current one as they are read (null in what it lacked), so that what is written of
them later is of one schema.
"""

import io
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from layers.errors import OvertoneError
from results.schema import LEDGER_VERSION, SCHEMA

__all__ = ["select_columns", "decode", "encode", "read_error"]

_LATER = frozenset({"val_top5", "latency_b64_ms", "reused_from"})
"""Columns that the first version did not have."""
_LATER_FIELDS: Mapping[str, tuple[str, ...]] = {
    "blocks": ("allocation", "exponent_axis", "activation_block"),
    "history": ("val_top5",),
}
"""Fields that the entries of the first version's lists did not have."""


def encode(table: pa.Table, metadata: Mapping[str, str] | None = None) -> bytes:
    """A few rows of the ledger's schema as Parquet bytes, with `metadata` beside the schema.

    Plain on purpose: for one row, dictionaries, statistics and compression would take three times as long to write
    and twice the bytes.
    """
    sink = io.BytesIO()
    plain = table.drop_columns(["study"])
    kind = {"compression": "none", "use_dictionary": False, "write_statistics": False, "store_schema": False}
    with pq.ParquetWriter(sink, plain.schema, **kind) as writer:
        writer.write_table(plain)
        writer.add_key_value_metadata(dict(metadata or {}))
    return sink.getvalue()


def decode(data: bytes, *, study: str, path: str) -> pa.Table:
    """The rows of one file, in the current schema; `path` is what an error calls it.

    Raises OvertoneError where the bytes are not Parquet, where they were not written by Overtone, and where a newer
    Overtone wrote them.
    """
    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise read_error(path, error) from None
    _check_version(table, path)
    return select_columns(table, SCHEMA.names, study=study, path=path)


def select_columns(table: pa.Table, columns: Sequence[str], *, study: str, path: str) -> pa.Table:
    """The columns that are asked for, in the ledger's types and its current version.

    Raises OvertoneError where one is missing or of another type.
    """
    known = {*table.column_names, "study", *_LATER}
    missing = [name for name in columns if name not in known]
    if missing:
        raise OvertoneError(f"{path!r} is not a ledger file of Overtone: it has no column {missing[0]!r}")
    fields = [SCHEMA.field(name) for name in columns]
    return pa.Table.from_arrays([_column(table, field, study, path) for field in fields], schema=pa.schema(fields))


def read_error(path: str, error: BaseException) -> OvertoneError:
    """The error for a file that Parquet's reader refuses."""
    reason = str(error).splitlines()[0].rstrip(".")
    return OvertoneError(f"{path!r} is not a readable Parquet file: {reason}")


def _check_version(table: pa.Table, path: str) -> None:
    if "ledger_version" not in table.column_names:
        raise OvertoneError(f"{path!r} is not a ledger file of Overtone: it has no column 'ledger_version'")
    versions = set(table.column("ledger_version").to_pylist())
    if not all(isinstance(version, int) and version > 0 for version in versions):
        raise OvertoneError(f"{path!r} is not a ledger file of Overtone: its ledger_version is no positive integer")
    if versions and max(versions) > LEDGER_VERSION:
        raise OvertoneError(
            f"{path!r} has schema version {max(versions)}, newer than {LEDGER_VERSION}: update overtone to read it"
        )


def _column(table: pa.Table, field: pa.Field, study: str, path: str) -> pa.ChunkedArray | pa.Array:
    if field.name == "study":
        return pa.repeat(pa.scalar(study, field.type), table.num_rows)
    if field.name in _LATER and field.name not in table.column_names:
        return pa.nulls(table.num_rows, field.type)
    column = table.column(field.name)
    try:
        if field.name in _LATER_FIELDS:
            column = _with_later_fields(column, field)
        column = column if column.type == field.type else column.cast(field.type)
    except pa.ArrowException:
        raise OvertoneError(
            f"{path!r}: column {field.name!r} holds {column.type} where the ledger holds {field.type}"
        ) from None
    if field.name == "ledger_version":
        return pa.repeat(pa.scalar(LEDGER_VERSION, field.type), table.num_rows)
    return column


def _with_later_fields(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    """A list column of an earlier version as the current one has it: null in the fields that it lacks.

    By hand, because what a cast does with a field that is missing depends on pyarrow: 18 refuses, 26 fills any with
    null, and so would take a foreign column for entries of which nothing is known.
    """
    if not pa.types.is_list(column.type) or not pa.types.is_struct(column.type.value_type):
        return column
    lacking = [name for name in _LATER_FIELDS[field.name] if column.type.value_type.get_field_index(name) < 0]
    if not lacking:
        return column
    chunks = [_widened(chunk, field.type.value_type, lacking).cast(field.type) for chunk in column.chunks]
    return pa.chunked_array(chunks, type=field.type)


def _widened(lists: pa.ListArray, entry: pa.StructType, lacking: Sequence[str]) -> pa.ListArray:
    """The same lists with the fields of `entry`, null in those that are lacking; ArrowException without another one."""
    entries = lists.flatten()
    names = [field.name for field in entry]
    fields = [
        pa.nulls(len(entries), field.type) if field.name in lacking else pc.struct_field(entries, field.name)
        for field in entry
    ]
    structs = pa.StructArray.from_arrays(fields, names, mask=entries.is_null())
    ends = pc.cumulative_sum(pc.list_value_length(lists).fill_null(0))
    offsets = pa.concat_arrays([pa.array([0], type=ends.type), ends])
    return pa.ListArray.from_arrays(offsets, structs, mask=lists.is_null())
