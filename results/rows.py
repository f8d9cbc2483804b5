"""Ledger rows as the bytes of one Parquet file, and back.

The file leaves out the column `study`: the folder's name (`study=NAME`) holds it, which is what pandas, DuckDB and
Spark expect of a hive partition; it is added again on reading. The version of the schema is in every row.
"""

import io

import pyarrow as pa
import pyarrow.parquet as pq

from layers.errors import OvertoneError
from results.schema import SCHEMA, SCHEMA_VERSION

__all__ = ["decode", "encode"]


def encode(table: pa.Table) -> bytes:
    """A table of the ledger's schema as Parquet bytes."""
    sink = io.BytesIO()
    pq.write_table(table.drop_columns(["study"]), sink, compression="zstd")
    return sink.getvalue()


def decode(data: bytes, *, study: str, path: str) -> pa.Table:
    """The rows of one file, in the current schema; `path` is what an error calls it.

    Raises OvertoneError where the bytes are not Parquet, where they were not written by Overtone, and where a newer
    Overtone wrote them.
    """
    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise OvertoneError(f"{path!r} is not a readable Parquet file: {reason}") from None
    _check_version(table, path)
    missing = [name for name in SCHEMA.names if name not in (*table.column_names, "study")]
    if missing:
        raise OvertoneError(f"{path!r} is not a ledger file of Overtone: it has no column {missing[0]!r}")
    columns = {name: _column(table, name, study, path) for name in SCHEMA.names}
    return pa.table(columns, schema=SCHEMA)


def _check_version(table: pa.Table, path: str) -> None:
    if "schema_version" not in table.column_names:
        raise OvertoneError(f"{path!r} is not a ledger file of Overtone: it has no column 'schema_version'")
    versions = set(table.column("schema_version").to_pylist())
    if not all(isinstance(version, int) and version > 0 for version in versions):
        raise OvertoneError(f"{path!r} is not a ledger file of Overtone: its schema_version is no positive integer")
    if versions and max(versions) > SCHEMA_VERSION:
        raise OvertoneError(
            f"{path!r} has schema version {max(versions)}, newer than {SCHEMA_VERSION}: update overtone to read it"
        )


def _column(table: pa.Table, name: str, study: str, path: str) -> pa.ChunkedArray | pa.Array:
    kind = SCHEMA.field(name).type
    if name == "study":
        return pa.array([study] * table.num_rows, type=kind)
    column = table.column(name)
    try:
        return column if column.type == kind else column.cast(kind)
    except pa.ArrowException:
        raise OvertoneError(f"{path!r}: column {name!r} holds {column.type} where the ledger holds {kind}") from None
