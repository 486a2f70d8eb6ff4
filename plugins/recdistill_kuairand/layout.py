"""Finds the files of either layout of KuaiRand-Pure and reads them as blocks of Arrow columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from recdistill_core.errors import DataError, suggest

STANDARD = ("log_standard_4_08_to_4_21_pure.csv", "log_standard_4_22_to_5_08_pure.csv")
RANDOM = "log_random_4_22_to_5_08_pure.csv"
STREAM = ("val.parquet", "test.parquet")
SEQUENCES = "user_sequences.parquet"
USERS = "user_features_pure.csv"
VIDEOS = "video_features_basic_pure.csv"
LAYOUTS = (
    f"official release: {', '.join(STANDARD)} (and {RANDOM} for include_random), {USERS}, {VIDEOS}, in PATH, "
    f"PATH/data or PATH/KuaiRand-Pure/data; processed slice: {', '.join(STREAM)}, {SEQUENCES}, {USERS}, {VIDEOS}, "
    "in PATH; CSV files may end in .csv.gz"
)
#: Columns of a log that are read; the rest are outcomes that nothing needs.
LOG_COLUMNS = ("user_id", "video_id", "time_ms", "tab", "is_rand", "is_click", "is_like", "long_view")
_NULLS = ["", "NaN", "nan", "NULL"]


@dataclass(frozen=True)
class Layout:
    """The files of one copy of the log. ``sequences`` is None in the official layout."""

    name: str
    logs: tuple[Path, ...]
    users: Path
    videos: Path
    sequences: Path | None = None


def find_layout(root: Path, include_random: bool) -> Layout:
    """The layout under ``root``.

    Raises:
        DataError: names the folder or the first missing file, and lists both layouts.
    """
    if not root.is_dir():
        raise DataError(f"no folder {root}", where=f"kuairand path {str(root)!r}", fix=f"expected {LAYOUTS}")
    if any((root / name).exists() for name in (*STREAM, SEQUENCES)):
        logs = tuple(_file(root, name) for name in STREAM)
        return Layout("slice", logs, _file(root, USERS), _file(root, VIDEOS), _file(root, SEQUENCES))
    for folder in (root, root / "data", root / "KuaiRand-Pure" / "data"):
        if any(_existing(folder, name) for name in (*STANDARD, RANDOM)):
            names = (*STANDARD, RANDOM) if include_random else STANDARD
            logs = tuple(_file(folder, name) for name in names)
            return Layout("official", logs, _file(folder, USERS), _file(folder, VIDEOS))
    raise DataError(f"no KuaiRand-Pure log in {root}", where=f"kuairand path {str(root)!r}", fix=f"expected {LAYOUTS}")


def _existing(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _file(folder: Path, name: str) -> Path:
    found = _existing(folder, name)
    if found is None:
        raise DataError(f"the file {name} is missing", where=str(folder), fix=f"expected {LAYOUTS}")
    return found


def read_blocks(path: Path, columns: Sequence[str], rows: int) -> Iterator[Any]:
    """Record batches of at most ``rows`` rows with exactly ``columns``, as int64, of a Parquet or CSV file.

    Raises:
        DataError: names the file and the missing column, or what of the file cannot be read.
    """
    if path.name.endswith(".parquet"):
        yield from read_parquet(path, columns, rows)
        return
    types = dict.fromkeys(columns, pa.int64())
    try:
        check_columns(path, _header(path), columns)
        with pa.csv.open_csv(
            path,
            read_options=pa.csv.ReadOptions(block_size=1 << 22),
            convert_options=_convert(columns, types),
        ) as reader:
            for batch in reader:
                for start in range(0, batch.num_rows, rows):
                    yield batch.slice(start, rows)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise _unreadable(path, error) from error


def read_parquet(path: Path, columns: Sequence[str], rows: int) -> Iterator[Any]:
    """Record batches of at most ``rows`` rows with ``columns``; errors as in :func:`read_blocks`."""
    try:
        with pa.parquet.ParquetFile(path) as file:
            check_columns(path, file.schema_arrow.names, columns)
            yield from file.iter_batches(rows, columns=list(columns))
    except (pa.ArrowException, OSError, EOFError) as error:
        raise _unreadable(path, error) from error


def read_table(path: Path, types: dict[str, Any]) -> Any:
    """The columns ``types`` (name -> Arrow type) of a small CSV file as one table; empty fields are null."""
    try:
        check_columns(path, _header(path), list(types))
        return pa.csv.read_csv(path, convert_options=_convert(list(types), types)).combine_chunks()
    except (pa.ArrowException, OSError, EOFError) as error:
        raise _unreadable(path, error) from error


def check_columns(path: Path, present: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises DataError for the first wanted column that is not present."""
    for name in wanted:
        if name not in present:
            raise DataError(
                f"no column {name!r}{suggest(name, present)}",
                where=str(path),
                fix="use the files of KuaiRand-Pure with their original header line",
            )


def _header(path: Path) -> list[str]:
    with pa.csv.open_csv(path, read_options=pa.csv.ReadOptions(block_size=1 << 16)) as reader:
        return list(reader.schema.names)


def _convert(columns: Sequence[str], types: dict[str, Any]) -> Any:
    return pa.csv.ConvertOptions(
        include_columns=list(columns), column_types=types, null_values=_NULLS, strings_can_be_null=True
    )


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"the file cannot be read: {error}", where=str(path), fix="fetch it again; compare its size with the release"
    )
