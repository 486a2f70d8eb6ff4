"""The YAML file that describes a table: every fault of it is reported at once, with its YAML path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from recdistill_core.config import fill, load_yaml
from recdistill_core.errors import ConfigError, Problem, suggest
from recdistill_core.rawlog import HistoryRate, RawCategorical, RawNumeric, RawSchema
from recdistill_core.schema import SIDES, KeepRates

T = TypeVar("T")
_UNITS = ("s", "ms", "us", "iso")
_LISTS: Mapping[str, type[Any]] = {
    "categorical": RawCategorical,
    "numeric": RawNumeric,
    "history_rates": HistoryRate,
}


@dataclass(frozen=True)
class _Plain:
    """The keys of the file as YAML knows them; see :class:`recdistill_core.rawlog.RawSchema`."""

    tasks: dict[str, str]
    user_id: str = "user_id"
    item_id: str = "item_id"
    event_time: str = "event_time"
    example_id: str = ""
    request_id: str = ""
    time_unit: str = "ms"
    categorical: list[Any] = field(default_factory=list)
    numeric: list[Any] = field(default_factory=list)
    history_rates: list[Any] = field(default_factory=list)
    position: str = ""
    propensity: str = ""
    event_fields: dict[str, str] = field(default_factory=dict)
    actions: dict[str, str] = field(default_factory=dict)
    shown: str = ""
    outcomes: list[str] = field(default_factory=list)
    keep_rates: dict[str, Any] = field(default_factory=dict)
    truth: dict[str, str] = field(default_factory=dict)
    vocabulary_min_count: int = 1
    vocabulary_until: Any = None
    time_ordered: bool = False
    events: str = ""
    delimiter: str = ""
    null_values: list[str] = field(default_factory=lambda: [""])


@dataclass(frozen=True)
class TableSchema:
    """What the file says.

    Attributes:
        raw: parts of the columns; times are ms where ``iso`` is set.
        iso: event times are ISO 8601 text.
        events: file, folder or glob of extra events, or None.
        delimiter: of CSV files, or empty for the usual one.
        null_values: texts that read as null in CSV files.
    """

    raw: RawSchema
    iso: bool
    events: Path | None
    delimiter: str
    null_values: tuple[str, ...]


def read_schema(path: Path) -> TableSchema:
    """Read the YAML file.

    Raises:
        UsageError: if the file is absent or not valid YAML.
        ConfigError: with every unknown key, wrong type, missing key and value out of range.
    """
    data = load_yaml(path)
    problems: list[Problem] = []
    lists = {key: _entries(cls, data.get(key, []), key, problems) for key, cls in _LISTS.items()}
    rates = _rates(data.get("keep_rates", {}), problems)
    rest = {key: value for key, value in data.items() if key not in (*_LISTS, "keep_rates")}
    plain = fill(_Plain, rest, "", problems)
    until = _until(data.get("vocabulary_until"), problems)
    if plain is not None:
        _check(plain, lists, problems)
    if problems or plain is None:
        raise ConfigError([Problem(f"{path}: {found.path}".rstrip(": "), found.message) for found in problems])
    same = {entry.name for entry in fields(RawSchema)} - {*lists, "keep_rates", "vocabulary_until"}
    kept: dict[str, Any] = {name: getattr(plain, name) for name in same}
    kept |= {"outcomes": tuple(plain.outcomes), "keep_rates": rates, "vocabulary_until": until}
    iso = plain.time_unit == "iso"
    kept |= {"time_unit": "ms" if iso else plain.time_unit, **{key: tuple(found) for key, found in lists.items()}}
    raw = RawSchema(**kept)
    events = path.parent / plain.events if plain.events else None
    return TableSchema(raw, iso, events, plain.delimiter, tuple(plain.null_values))


def _entries(cls: type[T], given: Any, key: str, problems: list[Problem]) -> list[T]:
    """A list of records; a bare name stands for a record with that name alone."""
    if not isinstance(given, list):
        problems.append(Problem(key, f"must be a list, got {given!r}"))
        return []
    named = [{"name": entry} if isinstance(entry, str) else entry for entry in given]
    made = [fill(cls, entry, f"{key}[{number}]", problems) for number, entry in enumerate(named)]
    return [entry for entry in made if entry is not None]


def _rates(given: Any, problems: list[Problem]) -> dict[str, KeepRates]:
    if not isinstance(given, Mapping):
        problems.append(Problem("keep_rates", f"must map a task to {{positive: ..., negative: ...}}, got {given!r}"))
        return {}
    made = {str(task): fill(KeepRates, rates, f"keep_rates.{task}", problems) for task, rates in given.items()}
    return {task: rates for task, rates in made.items() if rates is not None}


def _until(given: Any, problems: list[Problem]) -> int | None:
    if given is None or isinstance(given, int):
        return given
    try:
        when = datetime.fromisoformat(str(given))
    except ValueError:
        problems.append(Problem("vocabulary_until", f"must be ms UTC or an ISO 8601 date, got {given!r}"))
        return None
    return round(when.replace(tzinfo=when.tzinfo or UTC).timestamp() * 1000)


def _check(plain: _Plain, lists: Mapping[str, list[Any]], problems: list[Problem]) -> None:
    """Values that a type alone does not rule out."""
    if not plain.tasks:
        problems.append(Problem("tasks", "must name at least one task and its label column"))
    if plain.time_unit not in _UNITS:
        hint = suggest(plain.time_unit, _UNITS)
        problems.append(Problem("time_unit", f"must be one of {', '.join(_UNITS)}, got {plain.time_unit!r}{hint}"))
    if len(plain.delimiter) > 1:
        problems.append(Problem("delimiter", f"must be one character, got {plain.delimiter!r}"))
    sided = [(kind, number, entry) for kind in ("categorical", "numeric") for number, entry in enumerate(lists[kind])]
    for kind, number, feature in sided:
        if feature.side not in SIDES:
            hint = suggest(feature.side, SIDES)
            message = f"must be one of {', '.join(SIDES)}, got {feature.side!r}{hint}"
            problems.append(Problem(f"{kind}[{number}].side", message))
