"""The labels of one snapshot as SQL tables: ``labels``, ``quarantine``, ``versions``, ``commits``.

DuckDB sees Arrow data sets of exactly the files that the snapshot lists: what a crash has left is not there, and a
query can neither read nor write anything else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow.fs import LocalFileSystem

from recdistill_core.errors import UsageError
from recdistill_labels.facts import commit_row, version_row
from recdistill_parquet import labels_log
from recdistill_parquet.labels_findings import Progress
from recdistill_parquet.labels_log import Head
from recdistill_parquet.labels_segments import QUARANTINE, SEGMENTS, SegmentReader, logit_column
from recdistill_parquet.labels_state import Segment, VersionEntry

_VERSION_COLUMNS = {
    "version": pa.string(), "mode": pa.string(), "tasks": pa.list_(pa.string()), "view": pa.string(),
    "count": pa.int64(), "dataset": pa.string(), "trained_until": pa.int64(), "duplicates": pa.int64(),
    "quarantined": pa.int64(), "revoked": pa.string(), "revoked_since": pa.int64(), "revoked_at": pa.int64(),
    "segments": pa.int64(), "bytes": pa.int64(), "facts": pa.string(),
}  # fmt: skip
#: Quantiles of a summary.
_SHARES = {"p01": 0.01, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p99": 0.99}
_COMMIT_COLUMNS = {
    "number": pa.int64(), "id": pa.string(), "parent": pa.string(), "at": pa.int64(), "by": pa.string(),
    "done": pa.list_(pa.string()),
}  # fmt: skip


@dataclass(frozen=True)
class Snapshot:
    """What a query sees: the commit ``head`` of the store at ``store``, and of its versions only ``entries``."""

    store: Path
    head: Head
    entries: tuple[VersionEntry, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of any of the versions."""
        return tuple(dict.fromkeys(task for entry in self.entries for task in entry.tasks))

    def check(self, progress: Progress | None = None) -> None:
        """Compare every file with its sha256. Raises IntegrityError naming the first that is missing or damaged."""
        work = [(folder, segment) for folder in (SEGMENTS, QUARANTINE) for _, segment in self._files(folder)]
        for done, (folder, segment) in enumerate(work, start=1):
            SegmentReader(self.store, folder).content(segment)
            if progress:
                progress(done, len(work))

    def connect(self, scratch: Path) -> duckdb.DuckDBPyConnection:
        """A connection that sees the four tables and nothing else.

        Args:
            scratch: folder to which large queries may spill.

        Raises:
            UsageError: if the names of two tasks differ in case alone.
        """
        names = [logit_column(task) for task in self.tasks]
        _refuse_clashes(names)
        config: dict[str, str | bool | int | float | list[str]] = {
            "enable_external_access": "false",
            "python_enable_replacements": "false",  # or a name in a query could mean a variable of this program
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "temp_directory": str(scratch),
        }
        connection = duckdb.connect(":memory:", config=config)
        connection.register("_labels", self._rows(SEGMENTS, names))
        connection.register("_quarantine", self._rows(QUARANTINE, names))
        columns = ", ".join(["example_id, version, mode, step, scored_at", *map(_quoted, names)])
        connection.sql(f"CREATE VIEW labels AS SELECT {columns}, {self._visible()} AS visible, segment FROM _labels")
        connection.sql(f"CREATE VIEW quarantine AS SELECT {columns}, reason, segment FROM _quarantine")
        connection.register("versions", _table(_VERSION_COLUMNS, [_sql_row(entry) for entry in self.entries]))
        commits = labels_log.history(self.store)[: self.head.number]
        connection.register("commits", _table(_COMMIT_COLUMNS, [commit_row(entry) for entry in commits]))
        connection.sql("SET lock_configuration = true")
        return connection

    def _files(self, folder: str) -> list[tuple[VersionEntry, Segment]]:
        """The files that the snapshot lists in ``segments/`` or ``quarantine/``."""
        return [
            (entry, file) for entry in self.entries for file in (entry.segments if folder == SEGMENTS else entry.aside)
        ]

    def _rows(self, folder: str, logits: Sequence[str]) -> Any:
        """Their rows; a column that a file lacks is null; version, mode and segment come from the log."""
        fields = [("example_id", pa.int64()), ("version", pa.string()), ("mode", pa.string())]
        fields += [("step", pa.int64()), ("scored_at", pa.int64()), *((name, pa.float32()) for name in logits)]
        fields += [("reason", pa.string())] if folder == QUARANTINE else []
        schema = pa.schema([*fields, ("segment", pa.string())])
        pairs = self._files(folder)
        if not pairs:
            return schema.empty_table()
        known = [
            (ds.field("version") == entry.version)
            & (ds.field("mode") == entry.mode.value)
            & (ds.field("segment") == segment.file)
            for entry, segment in pairs
        ]
        paths = [str(self.store / folder / segment.file) for _, segment in pairs]
        return ds.FileSystemDataset.from_paths(
            paths, schema=schema, format=ds.ParquetFileFormat(), filesystem=LocalFileSystem(), partitions=known
        )

    def _visible(self) -> str:
        cases = [
            f"WHEN {_text(entry.version)} THEN "
            + ("false" if entry.revoked.since is None else f"scored_at < {entry.revoked.since}")
            for entry in self.entries
            if entry.revoked is not None
        ]
        return f"CASE version {' '.join(cases)} ELSE true END" if cases else "true"

    def summary(self) -> str:
        """A query: a row for each version and task, with counts, the mean probability and quantiles of the logits."""
        if not self.tasks:
            return "SELECT version, mode, count AS labels FROM versions"
        parts = " UNION ALL ".join(self._summary_of(task) for task in self.tasks)
        order = ", ".join(_text(entry.version) for entry in self.entries)
        quantiles = ", ".join(f"quantiles[{place}] AS logit_{name}" for place, name in enumerate(_SHARES, start=1))
        times = ", ".join(f"TRY(epoch_ms({name})) AS {name}" for name in ("first_scored", "last_scored"))
        return (
            f"SELECT version, task, labels, visible, mean_probability, {quantiles}, {times} "
            f"FROM ({parts}) ORDER BY list_position([{order}], version), task"
        )

    def _summary_of(self, task: str) -> str:
        logit = _quoted(logit_column(task))
        having = ", ".join(_text(entry.version) for entry in self.entries if task in entry.tasks)
        return (
            f"SELECT version, {_text(task)} AS task, count(*) AS labels, count(*) FILTER (WHERE visible) AS visible, "
            f"avg(1 / (1 + exp(-{logit}::DOUBLE))) AS mean_probability, "
            f"quantile_cont({logit}, {list(_SHARES.values())}) AS quantiles, "
            "min(scored_at) AS first_scored, max(scored_at) AS last_scored "
            f"FROM labels WHERE version IN ({having}) GROUP BY version"
        )


def _sql_row(entry: VersionEntry) -> dict[str, Any]:
    """One version; facts of any shape are JSON text."""
    row = version_row(entry)
    dataset, until = row["dataset"], row["trained_until"]
    return {
        **row,
        "dataset": dataset if dataset is None or isinstance(dataset, str) else json.dumps(dataset),
        "trained_until": until if isinstance(until, int) else None,
        "facts": json.dumps(row["facts"], sort_keys=True),
    }


def _table(columns: Mapping[str, pa.DataType], rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    return pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in columns.items()})


def _refuse_clashes(names: Sequence[str]) -> None:
    known: dict[str, str] = {}
    for name in names:
        other = known.setdefault(name.lower(), name)
        if other != name:
            raise UsageError(
                f"SQL cannot tell the columns {other!r} and {name!r} apart",
                fix="choose versions in which only one of them occurs, with --version",
            )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
