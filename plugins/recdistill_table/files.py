"""Files of a table, read as streams of Arrow record batches, with words that name a row of them."""

from __future__ import annotations

import bisect
import glob
import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from recdistill_core.errors import DataError, UsageError, suggest

_CSV = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
_PARQUET = (".parquet",)
_BATCH = 65_536
_BLOCK = 4 << 20


@dataclass
class Files:
    """The files of one table, in the order of their names.

    Attributes:
        paths: the files. delimiter: of CSV files, or empty. null_values: texts that read as null in CSV files.
        starts: number of the first row of each file read so far.
    """

    paths: tuple[Path, ...]
    delimiter: str = ""
    null_values: Sequence[str] = ("",)
    starts: list[int] = field(default_factory=list)

    @property
    def is_csv(self) -> bool:
        """Whether the files are text."""
        return _kind(self.paths[0]) == "csv"

    def locate(self, row: int) -> str:
        """``FILE, row R``: row of the file's data, from 1; with the line that an editor shows for plain text."""
        index = max(0, bisect.bisect_right(self.starts, row) - 1)
        start = self.starts[index] if self.starts else 0
        number = row - start + 1
        path = self.paths[index]
        return f"{path}, row {number}" + (f" (line {_line(path, number)})" if self.is_csv else "")

    def check(self, columns: Sequence[str]) -> None:
        """Raise DataError unless every file has the columns, each once."""
        for path in self.paths:
            names = self._header(path)
            for name in columns:
                if names.count(name) != 1:
                    what = "occurs twice" if name in names else f"is missing{suggest(name, names)}"
                    raise DataError(
                        f"column {name!r} {what}",
                        where=f"{path}; columns: {', '.join(names)}",
                        fix="correct the name in the schema file, or the file's header",
                    )

    def read(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """A fresh pass over the columns; those of CSV files are strings."""
        self.starts = []
        row = 0
        for path in self.paths:
            self.starts.append(row)
            for batch in self._csv(path, columns) if self.is_csv else self._parquet(path, columns):
                row += batch.num_rows
                yield batch

    def rows(self) -> int | None:
        """Number of rows where the files tell it without being read."""
        return None if self.is_csv else sum(pq.read_metadata(path).num_rows for path in self.paths)

    def _header(self, path: Path) -> list[str]:
        try:
            if self.is_csv:
                parse = pa.csv.ParseOptions(delimiter=self._delimiter(path), invalid_row_handler=lambda row: "skip")
                options = pa.csv.ReadOptions(use_threads=False, block_size=_BLOCK)
                with pa.csv.open_csv(path, read_options=options, parse_options=parse) as reader:
                    return list(reader.schema.names)
            return list(pq.read_schema(path).names)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(path, error) from error

    def _delimiter(self, path: Path) -> str:
        return self.delimiter or ("\t" if ".tsv" in path.suffixes else ",")

    def _csv(self, path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        bad: list[Any] = []

        def remember(row: Any) -> str:
            bad.append(row)
            return "error"

        convert = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()),
            include_columns=list(columns),
            strings_can_be_null=True,
            null_values=list(self.null_values),
        )
        try:
            with pa.csv.open_csv(
                path,
                read_options=pa.csv.ReadOptions(use_threads=False, block_size=_BLOCK),
                parse_options=pa.csv.ParseOptions(delimiter=self._delimiter(path), invalid_row_handler=remember),
                convert_options=convert,
            ) as reader:
                yield from reader
        except (pa.ArrowException, OSError) as error:
            if not bad:
                raise _unreadable(path, error) from error
            row = bad[0]
            raise DataError(
                f"the row has {row.actual_columns} values, the header {row.expected_columns}: {row.text[:80]!r}",
                where=f"{path}, row {row.number - 1} (line {_line(path, row.number - 1)})",
                fix="mend the row; a value that holds the delimiter needs quotes",
            ) from error

    def _parquet(self, path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        try:
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(batch_size=_BATCH, columns=list(columns))
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(path, error) from error


def find(path: str) -> tuple[Path, ...]:
    """The files that a path, folder or glob names, in the order of their names.

    Raises:
        UsageError: if there is none, or CSV and Parquet are mixed.
    """
    place = Path(path)
    if place.is_dir():
        found = [entry for entry in place.iterdir() if entry.is_file() and _kind(entry) is not None]
    elif place.is_file():
        found = [place]
    else:
        found = [Path(name) for name in glob.glob(path) if Path(name).is_file()]  # noqa: PTH207  # absolute patterns
    if not found:
        fix = f"give a file, a folder or a glob of files ending in {', '.join((*_CSV, *_PARQUET))}"
        raise UsageError(f"no log was found at {path!r}", where=path, fix=fix)
    kinds = {_kind(entry) for entry in found}
    if kinds - {"csv", "parquet"}:
        odd = next(entry for entry in found if _kind(entry) is None)
        fix = f"give files ending in {', '.join((*_CSV, *_PARQUET))}"
        raise UsageError(f"{odd.name!r} is neither CSV nor Parquet by its name", where=str(odd), fix=fix)
    if len(kinds) > 1:
        fix = "keep one format in the folder, or give a glob such as 'logs/*.parquet'"
        raise UsageError("CSV and Parquet files are mixed", where=path, fix=fix)
    return tuple(sorted(found))


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    return "csv" if name.endswith(_CSV) else "parquet" if name.endswith(_PARQUET) else None


def _line(path: Path, row: int) -> int:
    """The line of data row ``row`` (from 1) in a text file without line breaks inside quotes; empty lines count."""
    seen = 0
    with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            seen += bool(line.strip(b"\r\n"))
            if seen == row + 1:
                return number
    return row + 1


def _unreadable(path: Path, error: Exception) -> DataError:
    text = str(error)
    fix = "save the file as UTF-8" if "UTF8" in text else "check that the file is complete and of the format it claims"
    return DataError(f"the file cannot be read: {text}", where=str(path), fix=fix)
