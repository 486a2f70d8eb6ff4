"""The result of a query: as plain rows, CSV or Parquet, a batch of rows at a time."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from recdistill_core.errors import UsageError
from recdistill_core.files import whole_or_absent

BATCH = 65_536
_TABLES = "tables: labels, versions, commits, quarantine; DESCRIBE labels lists the columns of one"


def run_query(connection: duckdb.DuckDBPyConnection, sql: str) -> Result:
    """Run one query that only reads.

    Raises:
        UsageError: if it is none, or wrong; with DuckDB's own words.
    """
    with _blamed(sql):
        statements = connection.extract_statements(sql)
        kinds = [statement.type for statement in statements]
        if kinds != [duckdb.StatementType.SELECT]:
            raise UsageError(
                f"this is {'no query' if not kinds else 'not one query that only reads'}",
                where=sql,
                fix="give one SELECT, WITH, FROM, DESCRIBE or SUMMARIZE",
            )
        result = Result(connection.sql(sql).arrow(BATCH), sql)
    double = [name for name in result.names if result.names.count(name) > 1]
    if double:
        fix = f"name them apart: SELECT labels.{double[0]}, versions.{double[0]} AS other ..."
        raise UsageError(f"two columns of the result are called {double[0]!r}", where=sql, fix=fix)
    return result


class Result:
    """Rows that are read as they are asked for, once.

    Args:
        reader: where they come from. sql: the query, for messages.
    """

    def __init__(self, reader: pa.RecordBatchReader, sql: str) -> None:
        self._reader, self._sql = reader, sql
        self.names: list[str] = reader.schema.names

    def rows(self, most: int | None = None) -> list[dict[str, Any]]:
        """Rows as plain values, at most so many; NaN and infinite numbers are None, as JSON has none of them."""
        found = list[dict[str, Any]]()
        for batch in self._batches():
            found += [{name: plain(value) for name, value in row.items()} for row in batch.to_pylist()]
            if most is not None and len(found) >= most:
                return found[:most]
        return found

    def print_csv(self) -> None:
        """Print all rows as CSV, with a header."""
        sys.stdout.flush()
        self._write_csv(sys.stdout.buffer)
        sys.stdout.flush()

    def write(self, path: Path) -> int:
        """Write all rows to a file whose suffix names the format, whole or not at all; how many rows there are.

        Raises:
            UsageError: for another suffix than .csv and .parquet, or an absent folder.
        """
        if path.suffix not in (".csv", ".parquet"):
            raise UsageError(f"cannot tell the format of {path.name!r}", fix="end its name in .csv or .parquet")
        if not path.parent.is_dir():
            raise UsageError("there is no such folder", where=str(path.parent), fix="make it, or write to another")
        with whole_or_absent(path) as place:
            if path.suffix == ".csv":
                with place.open("wb") as stream:
                    return self._write_csv(stream)
            return self._write_parquet(place)

    def _write_csv(self, stream: BinaryIO) -> int:
        rows, schema = 0, pa.schema([(entry.name, _csv_type(entry.type)) for entry in self._reader.schema])
        with pc.CSVWriter(stream, schema) as writer:
            for batch in self._batches():
                columns = [_csv_column(column) for column in batch.columns]
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
                rows += batch.num_rows
        return rows

    def _write_parquet(self, place: Path) -> int:
        rows = 0
        with _blamed(self._sql), pq.ParquetWriter(place, self._reader.schema) as writer:
            for batch in self._batches():
                writer.write_batch(batch)
                rows += batch.num_rows
        return rows

    def _batches(self) -> Iterator[pa.RecordBatch]:
        while True:
            with _blamed(self._sql):
                try:
                    batch = self._reader.read_next_batch()
                except StopIteration:
                    return
            yield batch


def plain(value: Any) -> Any:
    """A value as JSON has it: numbers, text, lists and objects; times as ISO text, bytes as hex digits."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _flat(kind: pa.DataType) -> bool:
    """Whether CSV has a place for values of this type."""
    checks = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string, pa.types.is_temporal)
    return any(check(kind) for check in checks) and not pa.types.is_interval(kind) and not pa.types.is_duration(kind)


def _csv_type(kind: pa.DataType) -> pa.DataType:
    return kind if _flat(kind) else pa.string()


def _csv_column(column: pa.Array) -> pa.Array:
    """The column, or its values as JSON text where CSV has no place for them."""
    if _flat(column.type):
        return column
    values = [plain(value) for value in column.to_pylist()]
    texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pa.array(texts, pa.string())


@contextmanager
def _blamed(sql: str) -> Iterator[None]:
    """Faults of the query as UsageErrors with DuckDB's words; the files were compared with their sums before."""
    try:
        yield
    except (duckdb.Error, pa.ArrowException) as error:
        raise UsageError(f"the query failed: {error}", where=sql, fix=_TABLES) from None  # it is told
