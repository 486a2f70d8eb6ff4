"""Files of scores as SQL: which files, which columns, and how their texts and types become numbers."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb

from recdistill_core.errors import DataError, UsageError, suggest
from recdistill_core.fingerprint import file_sha256, snapshot_digest
from recdistill_parquet.dataset_sql import Database, quote

CSV, PARQUET = (".csv", ".tsv", ".csv.gz", ".tsv.gz"), (".parquet",)
INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "HUGEINT")
FLOATS = ("FLOAT", "DOUBLE")


class ScoreFiles:
    """The files that a path or a pattern names, in the order of their names.

    Args:
        path: a file or a pattern. delimiter: of CSV files; empty: found out.

    Raises:
        UsageError: if there is no such file, or their formats are not one that is read.
    """

    def __init__(self, path: str, delimiter: str = "") -> None:
        self.given = path
        plain = Path(path).is_file()
        self.paths = (Path(path),) if plain else tuple(sorted(map(Path, glob.glob(path))))  # noqa: PTH207  # absolute patterns
        endings = f"give Parquet ({', '.join(PARQUET)}) or CSV files ({', '.join(CSV)}) with a header"
        if not self.paths:
            raise UsageError(f"there is no file of scores at {path!r}", where=path, fix=endings)
        formats = {_format(entry) for entry in self.paths}
        if len(formats) != 1 or "" in formats:
            names = ", ".join(entry.name for entry in self.paths[:3])
            raise UsageError(f"the files of scores are not of one known format: {names}", where=path, fix=endings)
        self.is_csv = formats == {"csv"}
        self.delimiter = delimiter

    def sql(self) -> str:
        """The files as a table."""
        names = f"[{', '.join(quote(path) for path in self.paths)}]"
        if not self.is_csv:
            return f"read_parquet({names})"
        delimiter = f", delim = {text(self.delimiter)}" if self.delimiter else ""
        return f"read_csv({names}, header = true, all_varchar = true{delimiter})"

    def columns(self, database: Database) -> Mapping[str, str]:
        """``{column: SQL type}``. Raises DataError where the files cannot be read."""
        try:
            return {name: kind for name, kind, *_ in database.all(f"DESCRIBE SELECT * FROM {self.sql()}")}
        except duckdb.Error as error:
            raise self.unreadable(error) from error

    def require(self, columns: Mapping[str, str], wanted: Sequence[str], setting: str) -> None:
        """Raise DataError unless the files have the columns, which ``setting`` names."""
        for name in wanted:
            if name not in columns:
                raise DataError(
                    f"the scores have no column {name!r}{suggest(name, columns)}",
                    where=f"{self.given}; columns: {', '.join(columns)}",
                    fix=f"name the right column in {setting}",
                )

    def unreadable(self, error: Exception) -> DataError:
        """What to say when DuckDB cannot read on."""
        return DataError(
            f"the scores cannot be read: {str(error).splitlines()[0]}",
            where=self.given,
            fix="check that the file is complete and of the format its name says",
        )

    def content(self) -> str:
        """32 hex digits of the files' bytes, whatever they are called."""
        return snapshot_digest({str(number): file_sha256(path) for number, path in enumerate(self.paths)})

    def signature(self) -> tuple[tuple[int, int, int], ...]:
        """Changes when a file is replaced or written to."""
        found = [os.stat(path) for path in self.paths]  # noqa: PTH116  # st_ino too
        return tuple((facts.st_ino, facts.st_size, facts.st_mtime_ns) for facts in found)


def score(column: str, kind: str) -> str:
    """A score as DOUBLE: NULL where the cell is empty, NaN where it holds no number."""
    if kind in FLOATS or kind in INTEGERS or kind.startswith("DECIMAL"):
        return f"CAST({name(column)} AS DOUBLE)"
    plain = f"trim(CAST({name(column)} AS VARCHAR))"
    return (
        f"CASE WHEN coalesce({plain}, '') = '' THEN NULL ELSE coalesce(TRY_CAST({plain} AS DOUBLE), 'nan'::DOUBLE) END"
    )


def integer(column: str, kind: str, where: str) -> str:
    """An id or a time as BIGINT; NULL where it is none. Raises DataError for a column of floats."""
    if kind in INTEGERS:
        return f"TRY_CAST({name(column)} AS BIGINT)"
    if kind in FLOATS:
        raise DataError(
            f"column {column!r} holds floats ({kind}), in which long integers are rounded",
            where=where,
            fix="write the column as integers; in pandas, Int64 keeps integers beside missing values",
        )
    plain = f"trim(CAST({name(column)} AS VARCHAR))"
    return f"CASE WHEN regexp_full_match({plain}, '[+-]?[0-9]+') THEN TRY_CAST({plain} AS BIGINT) END"


def moment(column: str, kind: str, unit: str, where: str) -> str:
    """A time as BIGINT ms UTC; NULL where it is none."""
    if kind.startswith("TIMESTAMP") or kind == "DATE":
        return f"epoch_ms(CAST({name(column)} AS TIMESTAMPTZ))"
    if unit == "iso":
        return f"epoch_ms(TRY_CAST({name(column)} AS TIMESTAMPTZ))"
    whole = integer(column, kind, where)
    return {"ms": whole, "s": f"({whole}) * 1000", "us": f"({whole}) // 1000"}[unit]


def name(column: str) -> str:
    """A column's name in SQL."""
    return '"' + column.replace('"', '""') + '"'


def text(value: str) -> str:
    """A text in SQL."""
    return "'" + value.replace("'", "''") + "'"


def _format(path: Path) -> str:
    lower = path.name.lower()
    return "csv" if lower.endswith(CSV) else "parquet" if lower.endswith(PARQUET) else ""
