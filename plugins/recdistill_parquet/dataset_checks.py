"""Raw columns of one record batch to clean columns; the first bad value is refused with its file, row and column."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recdistill_core.errors import DataError, suggest
from recdistill_core.rawlog import TIME_UNITS, RawNumeric, RawSchema
from recdistill_parquet.dataset_format import UNOBSERVED

DAY_MS = 86_400_000
#: 1990-01-01: an earlier impression was logged in another unit, or not at all.
OLDEST_MS = 631_152_000_000


@dataclass(frozen=True)
class Rows:
    """The rows of one record batch, with the words to name one of them.

    Attributes:
        batch: the record batch. first: 0-based number of its first row in the stream.
        locate: names a row of the stream.
    """

    batch: pa.RecordBatch
    first: int
    locate: Callable[[int], str]

    def require(self, columns: tuple[str, ...]) -> None:
        """Raise DataError unless every column is there."""
        have = self.batch.schema.names
        for name in columns:
            if name not in have:
                raise DataError(
                    f"column {name!r} is missing{suggest(name, have)}",
                    where=f"{self.locate(self.first)}; columns: {', '.join(have)}",
                    fix="correct the column's name in the schema, or add the column to the log",
                )

    def refuse(self, wrong: NDArray[np.bool_], what: str, column: str, fix: str) -> None:
        """Raise DataError at the first True of ``wrong [rows]``; ``{value}`` in ``what`` becomes the raw value."""
        if wrong.any():
            index = int(np.argmax(wrong))
            value = self.batch.column(column)[index].as_py()
            place = f"{self.locate(self.first + index)}, column {column!r}"
            raise DataError(what.replace("{value}", repr(value)), where=place, fix=fix)

    def refuse_type(self, what: str, column: str, fix: str) -> DataError:
        """A DataError about the type of a whole column."""
        kind = self.batch.schema.field(column).type
        return DataError(f"{what}, got {kind}", where=f"{self.locate(self.first)}, column {column!r}", fix=fix)

    def refuse_null(self, column: str, role: str) -> None:
        """Raise DataError at the first null of a column."""
        found = self.batch.column(column)
        if found.null_count:
            wrong = found.is_null().to_numpy(zero_copy_only=False)
            self.refuse(wrong, f"{role} is null", column, "drop the row, or fill the value in before the import")

    def keys(self, column: str) -> pa.Array:
        """Ids or category values as int64 or string, nulls kept."""
        found = self.batch.column(column)
        if pa.types.is_dictionary(found.type):
            found = found.cast(found.type.value_type)
        kind = found.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            return found.cast(pa.string())
        if (
            pa.types.is_null(kind)
            or pa.types.is_boolean(kind)
            or pa.types.is_integer(kind)
            or pa.types.is_floating(kind)
        ):
            try:
                return found.cast(pa.int64())
            except pa.ArrowInvalid as error:
                what = f"ids and categories must be strings or integers ({error})"
                raise self.refuse_type(what, column, "make it a numeric feature, or cast it to a string") from error
        fix = "cast it to a string or an integer in the log"
        raise self.refuse_type("ids and categories must be strings or integers", column, fix)

    def numbers(self, column: str, role: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """``(values [rows], null [rows])``; nulls read 0."""
        found = self.batch.column(column)
        kind = found.type
        numeric = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
        if not (numeric or pa.types.is_decimal(kind) or pa.types.is_null(kind)):
            raise self.refuse_type(f"{role} must be a number", column, "cast the column to a number in the log")
        if pa.types.is_boolean(kind):
            found = found.cast(pa.int8())
        null = found.is_null().to_numpy(zero_copy_only=False)
        values = pc.fill_null(found.cast(pa.float64(), safe=False), 0.0).to_numpy(zero_copy_only=False)
        return values, null

    def integers(self, column: str, role: str) -> NDArray[np.int64]:
        """``[rows]`` int64 without nulls."""
        self.refuse_null(column, role)
        return self.whole_numbers(column, role)

    def whole_numbers(self, column: str, role: str) -> NDArray[np.int64]:
        """``[rows]`` int64; null reads 0."""
        found = self.keys(column)
        if not pa.types.is_integer(found.type):
            raise self.refuse_type(f"{role} must be an integer", column, "give integers")
        plain: NDArray[np.int64] = pc.fill_null(found, 0).to_numpy(zero_copy_only=False)
        return plain

    def labels(self, column: str, task: str) -> NDArray[np.int8]:
        """``[rows]`` of 0, 1 and ``UNOBSERVED`` for null."""
        values, null = self.numbers(column, f"label of task {task!r}")
        wrong = ~null & (values != 0) & (values != 1)
        what = f"label of task {task!r} is {{value}}, neither 0 nor 1"
        self.refuse(wrong, what, column, "make it binary before the import; null says not observed")
        return np.where(null, UNOBSERVED, values).astype(np.int8)

    def shown(self, schema: RawSchema) -> NDArray[np.bool_]:
        """``[rows]``: which rows were shown; one that was not has no label and no action."""
        if not schema.shown:
            return np.ones(self.batch.num_rows, np.bool_)
        self.refuse_null(schema.shown, "shown")
        values, _ = self.numbers(schema.shown, "shown")
        wrong = (values != 0) & (values != 1)
        self.refuse(wrong, "shown is {value}, neither 0 nor 1", schema.shown, "1 for rows that were shown, else 0")
        shown: NDArray[np.bool_] = values == 1
        for task, column in schema.tasks.items():
            _, null = self.numbers(column, f"label of task {task!r}")
            what = f"a row that was not shown has label {{value}} of task {task!r}"
            self.refuse(~shown & ~null, what, column, f"leave the label empty, or correct {schema.shown!r}")
        for action, column in schema.actions.items():
            values, _ = self.numbers(column, f"outcome of action {action!r}")
            what = f"a row that was not shown has outcome {{value}} of action {action!r}"
            self.refuse(~shown & (values != 0), what, column, f"leave the outcome empty, or correct {schema.shown!r}")
        return shown

    def bits(self, column: str, action: str) -> NDArray[np.int32]:
        """``[rows]`` of 0 and 1; null reads 0."""
        values, null = self.numbers(column, f"outcome of action {action!r}")
        wrong = (values != 0) & (values != 1)
        what = f"outcome of action {action!r} is {{value}}, neither 0 nor 1"
        self.refuse(wrong & ~null, what, column, "make it binary before the import; null reads 0")
        return values.astype(np.int32)

    def feature(self, spec: RawNumeric) -> NDArray[np.float32]:
        """``[rows]`` finite values as the model sees them; nulls become ``spec.missing``, after the logarithm."""
        column = spec.column or spec.name
        values, null = self.numbers(column, f"numeric feature {spec.name!r}")
        if spec.missing is None:
            fix = "set `missing` for this feature, or fill the value in before the import"
            self.refuse(null, f"numeric feature {spec.name!r} is null", column, fix)
        if spec.log1p:
            what = f"numeric feature {spec.name!r} is {{value}}, and log1p refuses values below 0"
            self.refuse(values < 0, what, column, "remove `log1p`, or mend the value")
            values = np.log1p(np.maximum(values, 0.0))
        with np.errstate(over="ignore"):
            small = np.where(null, spec.missing or 0.0, values).astype(np.float32)
        what = f"numeric feature {spec.name!r} is {{value}}, not a finite float32"
        self.refuse(~np.isfinite(small), what, column, "drop the row or fill the value in before the import")
        return small

    def positions(self, column: str, shown: NDArray[np.bool_]) -> NDArray[np.int64]:
        """``[rows]``, 0 = top; a row that was not shown has none, which reads 0."""
        null = self.batch.column(column).is_null().to_numpy(zero_copy_only=False)
        self.refuse(null & shown, "position is null", column, "drop the row, or fill the value in before the import")
        found = self.whole_numbers(column, "position")
        self.refuse(found < 0, "position is {value}, below 0", column, "count positions from 0 = top")
        return found

    def propensities(self, column: str, shown: NDArray[np.bool_]) -> NDArray[np.float32]:
        """``[rows]`` in (0, 1]; a row that was not shown need not have one, which reads 1."""
        values, null = self.numbers(column, "propensity")
        values, null = np.where(null & ~shown, 1.0, values), null & shown
        with np.errstate(over="ignore"):
            small = values.astype(np.float32)
        wrong = null | ~((small > 0) & (small <= 1))
        fix = "drop rows that could not have been shown, or give no propensity column"
        self.refuse(wrong, "propensity is {value}, outside (0, 1]", column, fix)
        return small

    def truths(self, column: str, task: str) -> NDArray[np.float64]:
        """``[rows]`` in [0, 1]."""
        values, null = self.numbers(column, f"true probability of task {task!r}")
        wrong = null | ~((values >= 0) & (values <= 1))
        what = f"true probability of task {task!r} is {{value}}, outside [0, 1]"
        self.refuse(wrong, what, column, "mend the simulator's column, or leave `truth` out")
        return values

    def times(self, column: str, unit: str, now_ms: float | None = None) -> NDArray[np.int64]:
        """``[rows]`` ms UTC, between 1990 and tomorrow."""
        self.refuse_null(column, "event_time")
        found = self.batch.column(column)
        if pa.types.is_timestamp(found.type):
            millis = found.cast(pa.timestamp("ms", tz=found.type.tz), safe=False).cast(pa.int64())
            values: NDArray[np.int64] = millis.to_numpy(zero_copy_only=False)
        else:
            values = self._in_unit(column, unit)
        now = time.time() * 1000 if now_ms is None else now_ms
        for wrong, what in (
            (values < OLDEST_MS, "event_time is {value}: before the year 1990"),
            (values > now + DAY_MS, "event_time is {value}: in the future"),
        ):
            self.refuse(wrong, f"{what} when read in {unit}", column, _unit_hint(values[wrong], unit, now))
        return values

    def _in_unit(self, column: str, unit: str) -> NDArray[np.int64]:
        found = self.batch.column(column)
        if pa.types.is_integer(found.type):
            plain = found.to_numpy(zero_copy_only=False)
            if unit == "us":
                micros: NDArray[np.int64] = plain.astype(np.int64) // 1000
                return micros
            limit = np.iinfo(np.int64).max // 1000
            low = 0 if pa.types.is_unsigned_integer(found.type) else -limit
            whole: NDArray[np.int64] = np.clip(plain.astype(_wide(found.type)), low, limit).astype(np.int64)
            return whole * 1000 if unit == "s" else whole
        if not pa.types.is_floating(found.type):
            fix = "give integers, or an Arrow timestamp; the `table` importer reads ISO 8601 with `time_unit: iso`"
            raise self.refuse_type("event_time must be an integer or a timestamp", column, fix)
        values = found.cast(pa.float64()).to_numpy(zero_copy_only=False)
        self.refuse(~np.isfinite(values), "event_time is {value}", column, "drop the row or mend its time")
        with np.errstate(over="ignore"):
            millis = np.rint(values * TIME_UNITS[unit])
        rounded: NDArray[np.int64] = np.clip(millis, -(2.0**62), 2.0**62).astype(np.int64)
        return rounded


def _wide(kind: pa.DataType) -> Any:
    return np.uint64 if pa.types.is_unsigned_integer(kind) else np.int64


def _unit_hint(wrong: NDArray[np.int64], unit: str, now: float) -> str:
    """What to do about an implausible time: another unit where that would make it plausible."""
    if not len(wrong):
        return ""
    raw = float(wrong[0]) / TIME_UNITS[unit]
    better = [name for name, size in TIME_UNITS.items() if name != unit and OLDEST_MS <= raw * size <= now + DAY_MS]
    if better:
        return f"set `time_unit: {better[0]}`: the value would then be plausible"
    return "drop the row or mend its time; times count from 1970-01-01 UTC"
