"""From a raw schema to what the dataset holds: lookups, vocabularies; and the checks of the raw schema."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from recdistill_core.errors import DataError, suggest
from recdistill_core.rawlog import RawCategorical, RawNumeric, RawSchema
from recdistill_core.schema import SIDES, Categorical, EventField, Schema

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_ITEM_VOCABULARY = "item_id"
#: Event columns that are not fields.
_RESERVED_FIELDS = ("item", "action", "time", "user", "row", "extra")


@dataclass(frozen=True)
class Lookup:
    """A raw column whose values become ids of a vocabulary."""

    column: str
    vocabulary: str


@dataclass(frozen=True)
class Plan:
    """Which lookups there are and who uses them.

    Attributes:
        raw: the raw schema.
        lookups: distinct lookups; the first is the item.
        categorical: per categorical feature, the index of its lookup.
        events: per event field, the index of its lookup; the first is the item. Empty: no history.
        schema: the dataset's schema, with vocabulary sizes still 0.
    """

    raw: RawSchema
    lookups: tuple[Lookup, ...]
    categorical: tuple[int, ...]
    events: tuple[int, ...]
    schema: Schema

    @property
    def vocabularies(self) -> tuple[str, ...]:
        """Names of the vocabularies, in the order of first use."""
        return tuple(dict.fromkeys(lookup.vocabulary for lookup in self.lookups))

    def impression_columns(self) -> tuple[str, ...]:
        """Raw columns that the impressions must have."""
        raw = self.raw
        found = [raw.user_id, raw.item_id, raw.event_time, raw.example_id, raw.request_id, raw.position, raw.propensity]
        found += [lookup.column for lookup in self.lookups]
        found += [feature.column or feature.name for feature in raw.numeric]
        found += [*raw.tasks.values(), *raw.actions.values(), *raw.truth.values(), raw.shown]
        return tuple(dict.fromkeys(name for name in found if name))

    def event_columns(self) -> tuple[str, ...]:
        """Raw columns that extra events must have."""
        raw = self.raw
        found = [raw.user_id, raw.event_time, *(self.lookups[index].column for index in self.events)]
        return tuple(dict.fromkeys([*found, *raw.actions.values()]))

    def with_sizes(self, sizes: dict[str, int], gives: Iterable[str]) -> Schema:
        """The dataset's schema once vocabularies are counted."""
        return replace(self.schema, vocabularies=sizes, gives=tuple(gives))


def make_plan(raw: RawSchema, origin: str) -> Plan:
    """The plan of a raw schema.

    Raises:
        DataError: where a feature would know the outcome, or names are missing, double or unfit for files.
    """
    where = f"schema of {origin}"
    _check_names(raw, where)
    _check_leaks(raw, where)
    _check_history(raw, where)
    vocabulary_of = {feature.column or feature.name: feature.vocabulary or feature.name for feature in raw.categorical}
    item = Lookup(raw.item_id, vocabulary_of.get(raw.item_id, _ITEM_VOCABULARY))
    features = [Lookup(entry.column or entry.name, entry.vocabulary or entry.name) for entry in raw.categorical]
    fields = [Lookup(column, vocabulary_of.get(column, name)) for name, column in raw.event_fields.items()]
    lookups = tuple(dict.fromkeys([item, *features, *fields]))
    named = [("item", item), *zip(raw.event_fields, fields, strict=True)] if raw.actions else []
    schema = Schema(
        tasks=tuple(raw.tasks),
        categorical=tuple(
            Categorical(entry.name, lookup.vocabulary, entry.side)
            for entry, lookup in zip(raw.categorical, features, strict=True)
        ),
        numeric=(*(entry.name for entry in raw.numeric), *(entry.name for entry in raw.history_rates)),
        numeric_sides={
            **{entry.name: entry.side for entry in raw.numeric},
            **{entry.name: "user" for entry in raw.history_rates},
        },
        events=tuple(EventField(name, lookup.vocabulary) for name, lookup in named),
        actions=tuple(raw.actions),
        vocabularies={lookup.vocabulary: 0 for lookup in lookups},
        item_vocabulary=item.vocabulary,
        keep_rates=dict(raw.keep_rates),
    )
    index = {lookup: number for number, lookup in enumerate(lookups)}
    events = tuple(index[lookup] for _, lookup in named)
    return Plan(raw, lookups, tuple(index[lookup] for lookup in features), events, schema)


def _all_names(raw: RawSchema) -> Iterator[tuple[str, str]]:
    """``(kind, name)`` of everything that gets a name in the dataset."""
    yield from (("task", name) for name in raw.tasks)
    yield from (("feature", entry.name) for entry in raw.categorical)
    yield from (("feature", entry.name) for entry in raw.numeric)
    yield from (("feature", entry.name) for entry in raw.history_rates)
    yield from (("vocabulary", entry.vocabulary) for entry in raw.categorical if entry.vocabulary)
    yield from (("event field", name) for name in raw.event_fields)
    yield from (("action", name) for name in raw.actions)


def _check_names(raw: RawSchema, where: str) -> None:
    if not raw.tasks:
        raise DataError("the log has no task", where=where, fix="name at least one label column under `tasks`")
    for part in ("user_id", "item_id", "event_time"):
        if not getattr(raw, part):
            raise DataError(f"the schema names no {part} column", where=where, fix=f"set {part} to a column")
    for kind, name in _all_names(raw):
        if not _NAME.fullmatch(name):
            fix = "use letters, digits, '_', '-' and '.' only; it becomes a file or column name"
            raise DataError(f"{kind} name {name!r} cannot be used", where=where, fix=fix)
    features = [name for kind, name in _all_names(raw) if kind == "feature"]
    doubles = [name for name, count in Counter(features).items() if count > 1]
    if doubles:
        raise DataError(f"two features are named {doubles[0]!r}", where=where, fix="rename one of them")
    sided: tuple[RawCategorical | RawNumeric, ...] = (*raw.categorical, *raw.numeric)
    for entry in sided:
        if entry.side not in SIDES:
            fix = f"use one of {', '.join(SIDES)}"
            raise DataError(f"feature {entry.name!r} has side {entry.side!r}", where=where, fix=fix)
    for part, mapping in (("keep_rates", raw.keep_rates), ("truth", raw.truth)):
        for task in mapping:
            if task not in raw.tasks:
                hint = suggest(task, raw.tasks)
                raise DataError(f"{part} names task {task!r}, which there is not{hint}", where=where, fix="correct it")


def _check_leaks(raw: RawSchema, where: str) -> None:
    """No feature and no event field may read what is known only after the impression."""
    late = dict.fromkeys(raw.outcomes, "an outcome")
    late |= {column: f"the outcome of action {name!r}" for name, column in raw.actions.items()}
    late |= {column: f"the true probability of task {task!r}" for task, column in raw.truth.items()}
    late |= {raw.shown: "whether the row was shown"} if raw.shown else {}
    late |= {column: f"the label of task {task!r}" for task, column in raw.tasks.items()}
    used = [("categorical feature", entry.name, entry.column or entry.name) for entry in raw.categorical]
    used += [("numeric feature", entry.name, entry.column or entry.name) for entry in raw.numeric]
    used += [("event field", name, column) for name, column in raw.event_fields.items()]
    used += [("item_id", raw.item_id, raw.item_id), ("position", raw.position, raw.position)]
    for kind, name, column in used:
        if column in late:
            raise DataError(
                f"{kind} {name!r} reads column {column!r}, which is {late[column]}: known only after the impression",
                where=where,
                fix="remove it from the features; for past behaviour use `history_rates` or an action of the history",
            )


def _check_history(raw: RawSchema, where: str) -> None:
    if not raw.actions and (raw.event_fields or raw.history_rates):
        part = "event_fields" if raw.event_fields else "history_rates"
        fix = "name the outcome columns of the events under `actions`, or remove it"
        raise DataError(f"{part} needs a history, and the schema has no actions", where=where, fix=fix)
    if len(raw.actions) > 16:
        fix = "keep the most telling outcomes"
        raise DataError(f"the schema has {len(raw.actions)} actions; 16 fit the action code", where=where, fix=fix)
    for name in raw.event_fields:
        if name in _RESERVED_FIELDS:
            raise DataError(f"event field {name!r} has a reserved name", where=where, fix="rename the event field")
    for rate in raw.history_rates:
        if rate.action and rate.action not in raw.actions:
            hint = suggest(rate.action, raw.actions)
            what = f"history rate {rate.name!r} names action {rate.action!r}, which there is not{hint}"
            raise DataError(what, where=where, fix=f"use one of {', '.join(raw.actions)}")
        if not 0.0 <= rate.prior_rate <= 1.0:
            what = f"history rate {rate.name!r} has prior_rate {rate.prior_rate}"
            raise DataError(what, where=where, fix="use the share of events, in [0, 1], that a new user may have")
        if rate.action and not 0 < rate.prior_count < float("inf"):
            what = f"history rate {rate.name!r} has prior_count {rate.prior_count}"
            raise DataError(what, where=where, fix="use a prior_count above 0: users without a past need a rate too")
    if raw.vocabulary_min_count < 1:
        what = f"vocabulary_min_count is {raw.vocabulary_min_count}"
        raise DataError(what, where=where, fix="use 1 to keep every value, or more to drop rare ones")
    if raw.time_unit not in ("s", "ms", "us"):
        raise DataError(f"time_unit {raw.time_unit!r} is unknown", where=where, fix="use s, ms or us")
