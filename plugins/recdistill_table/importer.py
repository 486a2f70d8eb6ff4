"""The importer ``table``: see the package's docstring for the schema file."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from recdistill_core.errors import DataError
from recdistill_core.rawlog import RawLog
from recdistill_table import TableConfig
from recdistill_table.files import Files, find
from recdistill_table.schema_file import TableSchema, read_schema
from recdistill_table.values import Converter, Kind, kinds


class TableImporter:
    """Reads CSV or Parquet files as a stream; a :class:`recdistill_core.interfaces.Importer`.

    Args:
        config: where the log and its schema file lie.
    """

    def __init__(self, config: TableConfig) -> None:
        self.config = config

    def open(self) -> RawLog:
        """Read the schema file and the headers, and describe the log.

        Raises:
            UsageError: if no file is found, formats are mixed, or the schema file is absent.
            ConfigError: with every fault of the schema file.
            DataError: naming the file that lacks a column; later, while streaming, the file, row and column of a bad
                value.
        """
        schema = read_schema(Path(self.config.schema))
        found = kinds(schema.raw)
        files = Files(find(self.config.path), schema.delimiter, schema.null_values)
        files.check([*found, *schema.raw.outcomes])
        return RawLog(
            schema=schema.raw,
            impressions=functools.partial(_stream, files, found, schema.iso),
            events=_events(schema, found),
            origin=self.config.path,
            locate=files.locate,
            facts={"importer": "table", "files": [path.name for path in files.paths]},
            total=files.rows(),
        )


def _events(schema: TableSchema, found: dict[str, Kind]) -> Callable[[], Iterator[Any]] | None:
    if schema.events is None:
        return None
    raw = schema.raw
    if not raw.actions:
        fix = "name the outcome columns of the events under `actions`, or remove `events`"
        raise DataError("the schema has extra events and no actions", where=str(schema.events), fix=fix)
    names = (raw.user_id, raw.item_id, raw.event_time, *raw.event_fields.values(), *raw.actions.values())
    files = Files(find(str(schema.events)), schema.delimiter, schema.null_values)
    files.check(list(dict.fromkeys(names)))
    return functools.partial(_stream, files, {name: found[name] for name in names}, schema.iso)


def _stream(files: Files, found: dict[str, Kind], iso: bool) -> Iterator[pa.RecordBatch]:
    """A fresh pass over the typed columns."""
    convert = Converter(found, iso, files.is_csv, files.locate)
    first = 0
    for batch in files.read(list(found)):
        yield convert(batch, first)
        first += batch.num_rows
