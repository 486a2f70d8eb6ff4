"""The out-of-core part: vocabularies, ids, joins and sorts by DuckDB under a memory limit, spilling to disk.

Every ORDER BY has a total key, so that the same log gives the same bytes whatever the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import duckdb
import pyarrow as pa

from recdistill_core.errors import DataError, UsageError
from recdistill_core.rawlog import RawLog
from recdistill_parquet.dataset_plan import Plan
from recdistill_parquet.dataset_staging import CHUNK, Staged

#: Memory that one DuckDB thread needs to sort and join without running out.
_PER_THREAD = 128 * 2**20


class Database:
    """A DuckDB connection with a memory limit and a spill folder.

    Args:
        memory_limit: such as ``"1GB"``. spill: folder for what does not fit.

    Raises:
        UsageError: if the limit cannot be read.
    """

    def __init__(self, memory_limit: str, spill: Path) -> None:
        self.memory_limit = memory_limit
        self._connection = duckdb.connect()
        for setting in ("autoinstall_known_extensions", "preserve_insertion_order", "enable_progress_bar"):
            self._connection.execute(f"SET {setting} = false")
        self._connection.execute(f"SET temp_directory = {quote(spill)}")
        try:
            self._connection.execute("SET memory_limit = " + "'" + memory_limit.replace("'", "") + "'")
        except duckdb.Error as error:
            self._connection.close()
            what = f"memory_limit {memory_limit!r} cannot be read: {error}"
            raise UsageError(what, where="memory_limit", fix="give a size such as 500MB or 4GB") from error
        self._connection.execute(f"SET threads = {_threads(memory_limit)}")

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        if isinstance(error, duckdb.OutOfMemoryException):
            raise UsageError(
                f"the work does not fit into memory_limit {self.memory_limit!r}: {error}",
                where="memory_limit",
                fix="raise memory_limit",
            ) from error

    def stream(self, query: str) -> Iterator[pa.RecordBatch]:
        """The result in record batches of at most ``CHUNK`` rows."""
        yield from self._connection.sql(query).arrow(CHUNK)

    def copy(self, query: str, path: Path) -> None:
        """Write the result, in any order, to a Parquet file."""
        options = f"FORMAT parquet, COMPRESSION lz4, ROW_GROUP_SIZE {CHUNK}"
        self._connection.execute(f"COPY ({query}) TO {quote(path)} ({options})")

    def first(self, query: str) -> tuple[Any, ...] | None:
        """The row of a result of at most one row, or None."""
        rows = self.all(query)
        return rows[0] if rows else None

    def all(self, query: str) -> list[tuple[Any, ...]]:
        """All rows of a short result."""
        rows: list[tuple[Any, ...]] = self._connection.execute(query).fetchall()
        return rows


def quote(path: Path) -> str:
    """A path as an SQL string."""
    return "'" + str(path.absolute()).replace("'", "''") + "'"


def _threads(memory_limit: str) -> int:
    units = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
    digits = "".join(letter for letter in memory_limit if letter.isdigit() or letter == ".")
    unit = next((letter for letter in memory_limit.lower() if letter in units), "m")
    return max(1, min(os.cpu_count() or 1, int(float(digits or 0) * units[unit] // _PER_THREAD)))


class Queries:
    """The SQL over the staged tables.

    Args:
        plan: who uses which lookup. impressions, events: the staged tables.
    """

    def __init__(self, plan: Plan, impressions: Staged, events: Staged | None) -> None:
        self.plan = plan
        self.tables = [(impressions, tuple(range(len(plan.lookups))))]
        if events is not None:
            self.tables.append((events, plan.events))
        self.impressions, self.events = impressions, events

    def _text(self, columns: Sequence[str]) -> bool:
        """Whether a staged column holds strings in any table; integers are then compared as strings."""
        kinds = [table.kinds.get(name) for table, _ in self.tables for name in columns]
        return any(kind is not None and pa.types.is_string(kind) for kind in kinds)

    def _key(self, column: str, group: Sequence[str]) -> str:
        return f"CAST({column} AS {'VARCHAR' if self._text(group) else 'BIGINT'})"

    def _group(self, vocabulary: str) -> list[str]:
        return [f"c{i}" for i, lookup in enumerate(self.plan.lookups) if lookup.vocabulary == vocabulary]

    def vocabulary(self, name: str) -> str:
        """Values of a vocabulary, by first appearance: older ids stay when a log grows at its end."""
        raw, group = self.plan.raw, self._group(name)
        until = "" if raw.vocabulary_until is None else f"AND time < {int(raw.vocabulary_until)}"
        parts = [
            f"SELECT {self._key(column, group)} AS value, time FROM read_parquet({quote(table.path)}) "
            f"WHERE {column} IS NOT NULL {until}"
            for table, lookups in self.tables
            for column in group
            if int(column[1:]) in lookups
        ]
        return (
            f"SELECT value FROM ({' UNION ALL '.join(parts)}) GROUP BY value "
            f"HAVING count(*) >= {int(raw.vocabulary_min_count)} ORDER BY min(time), value"
        )

    def keys(self, column: str) -> str:
        """Distinct values of the column ``usr`` (all tables) or ``request``, by first appearance."""
        tables = self.tables if column == "usr" else self.tables[:1]
        parts = [
            f"SELECT {self._key(column, [column])} AS value, time FROM read_parquet({quote(table.path)})"
            for table, _ in tables
        ]
        return f"SELECT value FROM ({' UNION ALL '.join(parts)}) GROUP BY value ORDER BY min(time), value"

    def encoded(self, table: Staged, ids: dict[str, Path], users: Path, requests: Path | None) -> str:
        """A staged table with ids in place of raw values."""
        lookups = next(found for entry, found in self.tables if entry is table)
        chosen = ["s.seq", "s.time", "s.action", "u.id AS usr"]
        joins = [f"JOIN read_parquet({quote(users)}) u ON u.value = {self._key('s.usr', ['usr'])}"]
        for index in dict.fromkeys(lookups):
            vocabulary = self.plan.lookups[index].vocabulary
            key = self._key(f"s.c{index}", self._group(vocabulary))
            joins.append(f"LEFT JOIN read_parquet({quote(ids[vocabulary])}) k{index} ON k{index}.value = {key}")
            chosen.append(f"CAST(coalesce(k{index}.id, 0) AS INTEGER) AS c{index}")
        if requests is not None:
            joins.append(f"JOIN read_parquet({quote(requests)}) r ON r.value = {self._key('s.request', ['request'])}")
            chosen.append("r.id AS request")
        done = {"seq", "time", "action", "usr", *(f"c{index}" for index in lookups)} | (
            {"request"} if requests is not None else set()
        )
        chosen += [f"s.{name}" for name in table.kinds if name not in done]
        return f"SELECT {', '.join(chosen)} FROM read_parquet({quote(table.path)}) s {' '.join(joins)}"

    def events_in_order(self, impressions: Path, events: Path | None) -> str:
        """All events by user and time; impressions before extra events, each in the order of the log."""
        fields = ", ".join(f"c{index} AS f{place}" for place, index in enumerate(self.plan.events))
        parts = [
            f"SELECT usr, time, action, {fields}, {source} AS extra, seq FROM read_parquet({quote(path)})"
            for source, path in enumerate([impressions, events])
            if path is not None
        ]
        return f"SELECT * FROM ({' UNION ALL '.join(parts)}) ORDER BY usr, time, extra, seq"


def impressions_in_order(encoded: Path, prefix: Path | None) -> str:
    """Impressions with their history prefix by time and example id."""
    chosen, joined = "e.*", ""
    if prefix is not None:
        chosen, joined = "e.*, p.* EXCLUDE (seq)", f"JOIN read_parquet({quote(prefix)}) p ON p.seq = e.seq"
    return f"SELECT {chosen} FROM read_parquet({quote(encoded)}) e {joined} ORDER BY e.time, e.example_id"


def users_in_order(users: Path, spans: Path | None) -> str:
    """Raw user ids with the place of their events, in the order of the user index."""
    table = f"read_parquet({quote(users)})"
    if spans is None:
        return f"SELECT value, 0::BIGINT AS event_start, 0::BIGINT AS event_count FROM {table} ORDER BY id"
    joined = f"{table} u JOIN read_parquet({quote(spans)}) s ON s.usr = u.id"
    return f"SELECT u.value, s.event_start, s.event_count FROM {joined} ORDER BY u.id"


def has_groups(encoded: Path) -> str:
    """A row where some request has two rows or more."""
    return f"SELECT 1 FROM read_parquet({quote(encoded)}) GROUP BY request HAVING count(*) > 1 LIMIT 1"


def refuse_double_examples(database: Database, staged: Staged, raw: RawLog) -> None:
    """Raise DataError naming both rows where two impressions share an example id."""
    table = f"read_parquet({quote(staged.path)})"
    double = database.first(
        f"SELECT example_id FROM {table} GROUP BY example_id HAVING count(*) > 1 ORDER BY min(seq) LIMIT 1"
    )
    if double is not None:
        rows = database.all(f"SELECT seq FROM {table} WHERE example_id = {double[0]} ORDER BY seq LIMIT 2")
        (first,), (second,) = rows
        raise DataError(
            f"example_id {double[0]} occurs twice",
            where=f"{raw.locate(first)} and {raw.locate(second)}, column {raw.schema.example_id!r}",
            fix="make example ids unique, or leave `example_id` out to number the rows",
        )
