"""Checks for importers."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from recdistill_core.interfaces import Importer
from recdistill_core.rawlog import TIME_UNITS, RawCategorical, RawLog, RawNumeric, RawSchema
from recdistill_core.testing.cases import Case, check, exercise

#: Impressions are believed to lie between 1990 and 2100, ms UTC; a wrong ``time_unit`` falls outside.
EARLIEST, LATEST = 631_152_000_000, 4_102_444_800_000
#: Fewer rows than this may equal a label by chance.
ENOUGH = 16


def opened(case: Case) -> RawLog:
    """The log of a new importer."""
    importer: Importer = case.build()
    return importer.open()


def columns_of(batches: Iterable[Any]) -> dict[str, list[Any]]:
    """Whole columns of Arrow record batches, as Python values; None is null."""
    found: dict[str, list[Any]] = {}
    for batch in batches:
        for name, values in batch.to_pydict().items():
            found.setdefault(name, []).extend(values)
    return found


def digests(batches: Iterable[Any]) -> dict[str, str]:
    """Column -> digest of its values, wherever the batches are cut; NaN equals NaN."""
    return {name: hashlib.sha256(repr(values).encode()).hexdigest() for name, values in columns_of(batches).items()}


def features_of(schema: RawSchema) -> dict[str, str]:
    """Feature -> column."""
    entries: tuple[RawCategorical | RawNumeric, ...] = (*schema.categorical, *schema.numeric)
    return {entry.name: entry.column or entry.name for entry in entries}


def streams_of(log: RawLog) -> dict[str, Callable[[], Iterator[Any]]]:
    """``{"impressions": ..., "events": ...}``, those that there are."""
    return {"impressions": log.impressions, **({"events": log.events} if log.events else {})}


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    """Names of the columns that differ, or an empty text."""
    return ", ".join(sorted(name for name in {*one, *other} if one.get(name) != other.get(name)))


@exercise("importer")
def run_importer(case: Case, made: Importer) -> Mapping[str, Any]:
    """Read everything."""
    log = made.open()
    return {name: digests(stream()) for name, stream in streams_of(log).items()} | {"schema": repr(log.schema)}


@check("importer")
def opening_twice_gives_the_same_rows(case: Case) -> None:
    """``open`` of one importer twice, and of another one with the same settings, describes and gives the same log."""
    importer = case.build()
    logs = [importer.open(), importer.open(), case.build(seed=1).open()]
    case.require(logs[0].schema == logs[1].schema == logs[2].schema, "describes its columns differently when reopened")
    for name, stream in streams_of(logs[0]).items():
        first = digests(stream())
        case.require(bool(first) or name == "events", f"has an example without {name}")
        for log in logs[1:]:
            changed = differing(first, digests(streams_of(log)[name]()))
            case.require(not changed, f"gives other {name} when it is opened again: {changed} differ")


@check("importer")
def every_pass_is_fresh(case: Case) -> None:
    """A log can be read many times, also from the start while another pass is under way."""
    log = opened(case)
    for name, stream in streams_of(log).items():
        whole = digests(stream())
        interrupted = stream()
        head = list(itertools.islice(interrupted, 1))
        for which, found in (("a second pass", digests(stream())), ("the first pass", digests([*head, *interrupted]))):
            changed = differing(whole, found)
            case.require(not changed, f"gives other {name} in {which}, begun beside another one: {changed} differ")


@check("importer")
def every_named_column_is_there(case: Case) -> None:
    """Every record batch has the columns that the schema names, and all batches have one Arrow schema."""
    log = opened(case)
    schema = log.schema
    shared = [schema.user_id, schema.item_id, schema.event_time, *schema.event_fields.values()]
    shared += schema.actions.values()
    wanted = [*shared, *features_of(schema).values(), *schema.tasks.values(), *schema.truth.values()]
    wanted += [name for name in (schema.example_id, schema.request_id, schema.position, schema.propensity) if name]
    for name, stream in streams_of(log).items():
        kinds = []
        for batch in stream():
            missing = sorted({*(wanted if name == "impressions" else shared)} - set(batch.schema.names))
            case.require(not missing, f"names columns that its {name} lack: {', '.join(missing)}")
            kinds.append(batch.schema)
        same = all(kind.equals(kinds[0]) for kind in kinds)
        case.require(same, f"gives {name} whose Arrow schema changes from batch to batch")


@check("importer")
def no_label_is_among_the_features(case: Case) -> None:
    """No feature is a label, an action, an outcome or a truth, by name or by its values."""
    log = opened(case)
    schema = log.schema
    features = features_of(schema)
    known_later = {
        **{column: f"the label of task {task!r}" for task, column in schema.tasks.items()},
        **{column: f"the true probability of task {task!r}" for task, column in schema.truth.items()},
        **{column: f"the outcome behind action {action!r}" for action, column in schema.actions.items()},
        **dict.fromkeys(schema.outcomes, "named among the outcomes"),
    }
    for feature, column in features.items():
        case.require(column not in known_later, f"has the feature {feature!r}, which is {known_later.get(column)}")
    columns = columns_of(log.impressions())
    for task, column in schema.tasks.items():
        seen = [row for row, label in enumerate(columns[column]) if label is not None]
        label = [columns[column][row] for row in seen]
        if len(seen) < ENOUGH or len(set(label)) < 2:
            continue
        for feature, name in features.items():
            copied = _tells([columns[name][row] for row in seen], label)
            case.require(
                not copied, f"has the feature {feature!r}, whose values are those of the label of task {task!r}"
            )


def _tells(values: list[Any], label: list[Any]) -> bool:
    """Whether a feature of two values splits the rows as the label does."""
    return len(set(values)) == 2 and len(set(zip(values, label, strict=True))) == 2


@check("importer")
def times_and_labels_are_legal(case: Case) -> None:
    """Times are plausible in their unit, labels 0, 1 or null, positions >= 0, propensities in (0, 1], ids distinct."""
    log = opened(case)
    schema = log.schema
    case.require(schema.time_unit in TIME_UNITS, f"has time_unit {schema.time_unit!r}, none of {list(TIME_UNITS)}")
    scale = TIME_UNITS[schema.time_unit]
    for name, stream in streams_of(log).items():
        columns = columns_of(stream())
        times = columns.get(schema.event_time, [])
        _require_all(case, log, f"{name}: {schema.event_time}", times, lambda t: EARLIEST <= t * scale < LATEST)
    columns = columns_of(log.impressions())
    times = columns[schema.event_time]
    ordered = all(before <= after for before, after in itertools.pairwise(times))
    case.require(ordered or not schema.time_ordered, "promises time_ordered and goes back in time")
    for column in schema.tasks.values():
        _require_all(case, log, f"label {column}", columns[column], lambda label: label in (None, 0, 1))
    if schema.position:
        _require_all(case, log, schema.position, columns[schema.position], lambda position: position >= 0)
    if schema.propensity:
        _require_all(case, log, schema.propensity, columns[schema.propensity], lambda chance: 0 < chance <= 1)
    if schema.example_id:
        ids = columns[schema.example_id]
        case.require(len(set(ids)) == len(ids), f"gives one {schema.example_id} to two rows")


def _require_all(case: Case, log: RawLog, name: str, values: list[Any], legal: Callable[[Any], bool]) -> None:
    for row, value in enumerate(values):
        try:
            fine = legal(value) and not (isinstance(value, float) and math.isnan(value))
        except TypeError:
            fine = False
        case.require(fine, f"gives {value!r} for {name}, at {log.locate(row)}")


@check("importer")
def rows_can_be_found_again(case: Case) -> None:
    """``origin`` names the log, and ``locate`` tells every row's place apart."""
    log = opened(case)
    case.require(isinstance(log.origin, str) and bool(log.origin.strip()), "does not name its origin")
    count = sum(batch.num_rows for batch in log.impressions())
    places = [log.locate(row) for row in range(min(count, 50))]
    case.require(all(isinstance(place, str) and place for place in places), "locates a row nowhere")
    case.require(len(set(places)) == len(places), f"locates two rows at one place: {places[:2]}")
    total = log.total
    case.require(total in (None, count), f"says that it has {total} impressions and gives {count}")


@check("importer")
def importing_twice_gives_one_snapshot(case: Case) -> None:
    """Two imports of one log make datasets with equal ``snapshot_id``."""
    write = importlib.import_module("recdistill_parquet.dataset_writer").write_dataset
    found = [write(opened(case), case.folder / name).snapshot_id for name in ("first", "second")]
    case.require(found[0] == found[1], f"is imported as {found[0]} and then as {found[1]}; its rows or facts change")
