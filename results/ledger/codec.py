"""Ledger rows as the bytes of one Parquet file, and back.

The file leaves out the column `study`: the folder's name (`study=NAME`) holds it, as pandas, DuckDB and Spark expect of
a hive partition; reading adds it again. The version of the schema is in every row.
"""

import io
from collections.abc import Container, Sequence
from contextlib import AbstractContextManager

import pyarrow as pa
import pyarrow.parquet as pq

from layers.errors import OvertoneError, translate_errors
from results.schema import LEDGER_VERSION, SCHEMA

__all__ = ["check_version", "decode", "encode", "read_errors", "refuse_prerelease", "select_columns"]

_PRERELEASE_KEY = "schema_version"
"""The key of the version in files that were written before version 1."""


def encode(table: pa.Table) -> bytes:
    """Return a few rows of the ledger's schema as Parquet bytes.

    Plain on purpose: for one row, dictionaries, statistics and compression would take three times as long to write
    and twice the bytes.
    """
    sink = io.BytesIO()
    columns = table.drop_columns(["study"])
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False, "store_schema": False}
    with pq.ParquetWriter(sink, columns.schema, **options) as writer:
        writer.write_table(columns)
    return sink.getvalue()


def decode(data: bytes, *, study: str, path: str) -> pa.Table:
    """Return the rows of one file; errors call it by `path`.

    Raises `OvertoneError` if the bytes are not Parquet, were not written by Overtone, or were written by another
    version's Overtone or by a pre-release.
    """
    with read_errors(path):
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    _check_versions(table, path)
    return select_columns(table, SCHEMA.names, study=study, path=path)


def select_columns(table: pa.Table, columns: Sequence[str], *, study: str, path: str) -> pa.Table:
    """Return the named columns in the ledger's types.

    Raises `OvertoneError` if one is missing or of another type.
    """
    present = {"study", *table.column_names}
    missing = [name for name in columns if name not in present]
    if missing:
        raise OvertoneError(f"{path!r} is not a ledger file of Overtone: it has no column {missing[0]!r}")
    fields = [SCHEMA.field(name) for name in columns]
    return pa.Table.from_arrays([_column(table, field, study, path) for field in fields], schema=pa.schema(fields))


def read_errors(path: str) -> AbstractContextManager[None]:
    """Return a context in which the refusals of Parquet's reader become an `OvertoneError` that names the file."""
    return translate_errors(f"{path!r} is not a readable Parquet file", OSError, pa.ArrowException)


def refuse_prerelease(keys: Container[str], path: str) -> None:
    """Raise `OvertoneError` if a file or record has the key under which pre-releases kept the version."""
    if _PRERELEASE_KEY in keys:
        raise OvertoneError(f"{path!r} is from a pre-release of Overtone (key {_PRERELEASE_KEY!r}) and cannot be read")


def check_version(version: int, own: int, path: str) -> None:
    """Raise `OvertoneError` for any version but this Overtone's own."""
    if version > own:
        raise OvertoneError(f"{path!r} has version {version}, newer than {own}: update overtone")
    if version < own:
        raise OvertoneError(
            f"{path!r} has version {version}, older than {own}: bits rounded the layers' inputs too then"
        )


def _check_versions(table: pa.Table, path: str) -> None:
    refuse_prerelease(table.column_names, path)
    if "ledger_version" not in table.column_names:
        raise OvertoneError(f"{path!r} is not a ledger file of Overtone: it has no column 'ledger_version'")
    versions = set(table.column("ledger_version").to_pylist())
    if not all(isinstance(version, int) and version > 0 for version in versions):
        raise OvertoneError(f"{path!r} is not a ledger file of Overtone: its ledger_version is no positive integer")
    for version in versions:
        check_version(version, LEDGER_VERSION, path)


def _column(table: pa.Table, field: pa.Field, study: str, path: str) -> pa.ChunkedArray | pa.Array:
    if field.name == "study":
        return pa.repeat(pa.scalar(study, field.type), table.num_rows)
    column = table.column(field.name)
    if column.type == field.type:
        return column
    message = f"{path!r}: column {field.name!r} holds {column.type} where the ledger holds {field.type}"
    if not _has_fields(column.type, field.type):
        raise OvertoneError(message)
    try:
        return column.cast(field.type)
    except pa.ArrowException:
        raise OvertoneError(message) from None


def _has_fields(kind: pa.DataType, ledger: pa.DataType) -> bool:
    """Return whether a type has all nested fields of the ledger's.

    By hand, because what a cast does with a missing field depends on pyarrow: 18 refuses, 26 fills it with null, and so
    would take a foreign column for entries of which nothing is known.
    """
    if pa.types.is_struct(ledger):
        return pa.types.is_struct(kind) and all(
            kind.get_field_index(field.name) >= 0 and _has_fields(kind.field(field.name).type, field.type)
            for field in ledger
        )
    if pa.types.is_list(ledger) and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return _has_fields(kind.value_type, ledger.value_type)
    return True
