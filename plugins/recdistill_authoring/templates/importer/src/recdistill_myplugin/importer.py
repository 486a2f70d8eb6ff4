"""The importer itself. It says what the columns mean and streams them; sorting and histories are recdistill's work."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]  # it ships no types
from recdistill_core.errors import DataError
from recdistill_core.rawlog import RawCategorical, RawLog, RawSchema

from recdistill_myplugin import MyPluginConfig

COLUMNS = pa.schema([("user", pa.int64()), ("item", pa.string()), ("ts", pa.float64()), ("click", pa.int8())])


class MyPluginImporter:
    """Reads ``{"user": int, "item": text, "ts": seconds since the epoch, UTC, "click": 0 or 1 or absent}``, one a line.

    ``item`` is a feature and the event that later rows see; ``click`` is the task and the event's action.

    Args:
        config: holds ``path`` and ``batch_rows``.
    """

    def __init__(self, config: MyPluginConfig) -> None:
        self.path, self.batch_rows = Path(config.path), config.batch_rows

    def open(self) -> RawLog:
        """The log, described. Raises DataError if there is no such file."""
        if not self.path.is_file():
            raise DataError("there is no such log", where=str(self.path), fix="name a file of JSON lines")
        schema = RawSchema(
            tasks={"click": "click"},
            user_id="user",
            item_id="item",
            event_time="ts",
            time_unit="s",
            categorical=(RawCategorical("item", side="item"),),
            actions={"click": "click"},
        )
        return RawLog(schema, self.impressions, f"JSON lines {self.path.name}", self.locate)

    def impressions(self) -> Iterator[pa.RecordBatch]:
        """A fresh pass over the log, ``batch_rows`` rows at a time. Raises DataError with file and line."""
        with self.path.open(encoding="utf-8") as stream:
            lines = enumerate(stream, start=1)
            while some := list(itertools.islice(lines, self.batch_rows)):
                rows = [self._parsed(line, number) for number, line in some]
                try:
                    yield pa.RecordBatch.from_pylist(rows, schema=COLUMNS)
                except (pa.ArrowException, TypeError, OverflowError) as error:
                    place = f"{self.path}, lines {some[0][0]} to {some[-1][0]}"
                    raise DataError(f"a value has the wrong type: {error}", where=place) from error

    def locate(self, row: int) -> str:
        """Where row ``row`` (0-based) of the stream came from, for messages."""
        return f"{self.path}, line {row + 1}"

    def _parsed(self, line: str, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"this is no JSON: {error}", where=f"{self.path}, line {number}") from error
        if not isinstance(row, dict):
            raise DataError("a line must hold a JSON object", where=f"{self.path}, line {number}")
        return row
