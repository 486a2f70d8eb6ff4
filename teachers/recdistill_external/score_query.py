"""The query that gives scores by example id, whatever a row of the files is identified by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recdistill_core.component import BuildContext
from recdistill_external import score_files as sql
from recdistill_external.config import ScoresFileConfig
from recdistill_external.raw_ids import key_table, lookup_names, raw_values, require_source, unknown_name
from recdistill_external.score_files import ScoreFiles
from recdistill_parquet.dataset_sql import Database, quote

WHO = "teacher 'scores_file'"
EXAMPLES = "examples.parquet"


class ScoreQuery:
    """From rows of files to rows ``id, s0, s1, ...``, one score for each task, sorted by example id.

    Args:
        config: the key and the columns. context: the tasks, and the source where the key holds raw ids.
        files: the scores.
    """

    def __init__(self, config: ScoresFileConfig, context: BuildContext, files: ScoreFiles) -> None:
        self.config, self.context, self.files = config, context, files
        self.key = dict(config.key) or {"example_id": "example_id"}

    def select(self, database: Database, folder: Path) -> str:
        """The query; the tables of :meth:`write_lookups` are read from ``folder`` when it is run.

        Raises:
            DataError: if a column is missing or holds floats for integers.
            UsageError: for a key that the dataset does not have, or a key of raw ids without a source.
        """
        database.all("SET TimeZone = 'UTC'")
        columns = self.files.columns(database)
        scores = [self.config.column_of(task) for task in self.context.tasks]
        self.files.require(columns, list(self.key.values()), "key")
        self.files.require(columns, scores, "scores")
        named = [f"{sql.score(column, columns[column])} AS s{n}" for n, column in enumerate(scores)]
        if "example_id" in self.key:
            column = self.key["example_id"]
            named.insert(0, f"{sql.integer(column, columns[column], self.config.path)} AS id")
            rows = f"(SELECT {', '.join(named)} FROM {self.files.sql()}) WHERE id IS NOT NULL"
        else:
            rows = self._joined(columns, named, folder)
        return f"SELECT id, {', '.join(f's{n}' for n in range(len(scores)))} FROM {rows} ORDER BY id"

    def write_lookups(self, folder: Path) -> None:
        """Put the raw values of the key's columns, and the examples with their numbers, where DuckDB reads them."""
        if "example_id" in self.key:
            return
        source, ids = require_source(self.context, WHO, ", ".join(self.key))
        vocabularies = lookup_names(self.context.require_schema())
        found = key_table(tuple(self.key), source)
        aliases = {"example_id": "id", **{name: f"k{number}" for number, name in enumerate(self.key)}}
        pq.write_table(pa.table({aliases[name]: column for name, column in found.items()}), folder / EXAMPLES)
        for name in self.key:
            if name != "event_time":
                raw = raw_values(name, vocabularies, ids).cast(pa.string())
                table = pa.table({"raw": raw, "code": pa.array(range(len(raw)), pa.int64())})
                pq.write_table(table, folder / f"{aliases[name]}.parquet")

    def _joined(self, columns: Mapping[str, str], scores: list[str], folder: Path) -> str:
        """The rows of the files with the ids of the examples whose raw values they have."""
        schema = self.context.require_schema()
        require_source(self.context, WHO, ", ".join(self.key))
        keys, joins, conditions = [], [], []
        for number, (name, column) in enumerate(self.key.items()):
            alias, values = f"k{number}", quote(folder / f"k{number}.parquet")
            if name == "event_time":
                when = sql.moment(column, columns[column], self.config.time_unit, self.config.path)
                keys.append(f"{when} AS {alias}")
                conditions.append(f"e.{alias} = f.{alias}")
                continue
            if name not in lookup_names(schema):
                raise unknown_name(name, schema, ("example_id", "event_time"), WHO, "key")
            keys.append(f"CAST({sql.name(column)} AS VARCHAR) AS {alias}")
            joins.append(f"JOIN read_parquet({values}) v{number} ON v{number}.raw = f.{alias}")
            conditions.append(f"e.{alias} = v{number}.code")
        rows = f"(SELECT {', '.join([*keys, *scores])} FROM {self.files.sql()}) f"
        chosen = ", ".join(["e.id", *(f"f.s{n}" for n in range(len(scores)))])
        examples = f"JOIN read_parquet({quote(folder / EXAMPLES)}) e ON {' AND '.join(conditions)}"
        return f"(SELECT {chosen} FROM {rows} {' '.join(joins)} {examples})"
