"""Text columns of CSV files to typed columns, and ISO 8601 times to ms; the first bad value is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum

import pyarrow as pa
import pyarrow.compute as pc

from recdistill_core.errors import DataError
from recdistill_core.rawlog import RawSchema

_ZONE = r"(Z|[+-]\d{2}:?\d{2})$"


class Kind(IntEnum):
    """What a column holds. A column that plays several parts has the smallest."""

    TIME = 0
    INTEGER = 1
    FLAG = 2
    REAL = 3
    TEXT = 4


_MEANING = {
    Kind.TIME: "a time",
    Kind.INTEGER: "a whole number",
    Kind.FLAG: "0 or 1",
    Kind.REAL: "a number",
}


def kinds(raw: RawSchema) -> dict[str, Kind]:
    """Column -> what it holds, for every column that the schema names."""
    found: dict[str, Kind] = {}

    def note(kind: Kind, *columns: str) -> None:
        for column in columns:
            if column:
                found[column] = min(kind, found.get(column, Kind.TEXT))

    note(Kind.TIME, raw.event_time)
    note(Kind.INTEGER, raw.example_id, raw.position)
    note(Kind.FLAG, *raw.tasks.values(), *raw.actions.values(), raw.shown)
    note(Kind.REAL, raw.propensity, *raw.truth.values(), *(entry.column or entry.name for entry in raw.numeric))
    note(Kind.TEXT, raw.user_id, raw.item_id, raw.request_id, *raw.event_fields.values())
    note(Kind.TEXT, *(entry.column or entry.name for entry in raw.categorical))
    return found


@dataclass(frozen=True)
class Converter:
    """Converts record batches of one table.

    Attributes:
        kinds: column -> what it holds. iso: times are ISO 8601 text. text: all columns come as text (CSV).
        locate: names a row of the table.
    """

    kinds: Mapping[str, Kind]
    iso: bool
    text: bool
    locate: Callable[[int], str]

    def __call__(self, batch: pa.RecordBatch, first: int) -> pa.RecordBatch:
        """The typed batch. Raises DataError naming the first value that does not fit; ``first`` is its first row."""
        columns = {}
        for name in batch.schema.names:
            column, kind = batch.column(name), self.kinds[name]
            if (self.text and kind != Kind.TEXT) or (kind == Kind.TIME and self.iso):
                column = self._convert(column, kind, name, first)
            columns[name] = column
        return pa.RecordBatch.from_pydict(columns)

    def _convert(self, column: pa.Array, kind: Kind, name: str, first: int) -> pa.Array:
        change = self._change(kind)
        try:
            return change(column)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            row = _first_failure(column, change)
            meaning = "an ISO 8601 time" if kind == Kind.TIME and self.iso else _MEANING[kind]
            raise DataError(
                f"{column[row].as_py()!r} is not {meaning}",
                where=f"{self.locate(first + row)}, column {name!r}",
                fix="mend the value, or correct the column's part in the schema file",
            ) from None

    def _change(self, kind: Kind) -> Callable[[pa.Array], pa.Array]:
        if kind == Kind.TIME and self.iso:
            return iso_to_ms
        return {Kind.TIME: _whole_or_real, Kind.INTEGER: _whole, Kind.FLAG: _flag, Kind.REAL: _real}[kind]


def iso_to_ms(column: pa.Array) -> pa.Array:
    """ISO 8601 text to int64 ms UTC; text without a zone is UTC. Arrow timestamps pass; fractions below ms drop."""
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp("ms", tz=column.type.tz), safe=False).cast(pa.int64())
    text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    zoned = pc.match_substring_regex(text, _ZONE)
    none = pa.scalar(None, pa.string())
    with_zone = pc.if_else(zoned, text, none).cast(pa.timestamp("ns", tz="UTC"))
    without = pc.if_else(zoned, none, text).cast(pa.timestamp("ns")).cast(pa.timestamp("ns", tz="UTC"))
    return pc.coalesce(with_zone, without).cast(pa.timestamp("ms", tz="UTC"), safe=False).cast(pa.int64())


def _real(column: pa.Array) -> pa.Array:
    return pc.utf8_trim_whitespace(column).cast(pa.float64())


def _whole(column: pa.Array) -> pa.Array:
    try:
        return pc.utf8_trim_whitespace(column).cast(pa.int64())
    except pa.ArrowInvalid:
        return _real(column).cast(pa.int64())


def _whole_or_real(column: pa.Array) -> pa.Array:
    """Times as float64, in which every plausible time in s, ms or us is exact."""
    return _real(column)


def _flag(column: pa.Array) -> pa.Array:
    """0 and 1 in any spelling of numbers, true and false."""
    try:
        return _real(column)
    except pa.ArrowInvalid:
        return pc.utf8_trim_whitespace(column).cast(pa.bool_()).cast(pa.int8()).cast(pa.float64())


def _first_failure(column: pa.Array, change: Callable[[pa.Array], pa.Array]) -> int:
    """The first row that cannot be converted, by bisection."""
    good, bad = 0, len(column)
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            change(column.slice(good, middle - good))
            good = middle
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            bad = middle
    return good
