"""What the columns of a dataset mean: features, vocabularies, event fields and tasks. No torch here.

A schema travels beside the data (``schema.yaml``) and with every model that was trained on it; its ``view_hash``
names the feature view in fingerprints and label keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from recdistill_core.errors import DataError, suggest

#: Row of every vocabulary that stands for values never seen when the vocabulary was made.
OOV = 0
#: Stands for the item that a row shows, whatever feature of the dataset holds its id.
ITEM = "item"
SIDES = ("user", "item", "context")


@dataclass(frozen=True)
class Categorical:
    """One categorical feature.

    Attributes:
        name: column in the impressions.
        vocabulary: name of its vocabulary; several features and event fields may share one.
        side: whose property it is, ``user``, ``item`` or ``context`` (known at request time).
    """

    name: str
    vocabulary: str
    side: str = "context"

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise ValueError(f"feature {self.name!r}: side {self.side!r} is none of {SIDES}")


@dataclass(frozen=True)
class EventField:
    """One column of the event table, an id of ``vocabulary``. The first field is always ``item``."""

    name: str
    vocabulary: str


@dataclass(frozen=True)
class KeepRates:
    """Probabilities in (0, 1] with which a positive / a negative survived sampling before it was logged."""

    positive: float
    negative: float

    def __post_init__(self) -> None:
        for name, rate in (("positive", self.positive), ("negative", self.negative)):
            if not 0.0 < rate <= 1.0:
                raise ValueError(f"keep rate of {name} rows must lie in (0, 1], got {rate}")


@dataclass(frozen=True)
class Schema:
    """Meaning of a dataset's columns.

    Attributes:
        tasks: names of the binary tasks; labels are 0 or 1.
        categorical: features with ids of a vocabulary (id 0 = out of vocabulary).
        numeric: names of float features, finite, scaled as the model shall see them.
        numeric_sides: numeric feature -> whose property it is, of :data:`SIDES`; what is not named is not known.
        events: columns of the event table besides ``time`` and ``action``; the first is ``item``.
        actions: names of the bits of an event's ``action`` code, lowest bit first.
        vocabularies: name -> size, the out-of-vocabulary row included.
        item_vocabulary: vocabulary of ``item_id``.
        keep_rates: task -> known keep rates of the sampling that made this log.
        gives: optional columns that the impressions have, of ``position``, ``propensity``, ``request_groups``,
            ``shown``.
        time_unit: always ``ms`` since the epoch, UTC, once imported.
    """

    tasks: tuple[str, ...]
    categorical: tuple[Categorical, ...] = ()
    numeric: tuple[str, ...] = ()
    numeric_sides: Mapping[str, str] = field(default_factory=dict)
    events: tuple[EventField, ...] = ()
    actions: tuple[str, ...] = ()
    vocabularies: Mapping[str, int] = field(default_factory=dict)
    item_vocabulary: str = "item_id"
    keep_rates: Mapping[str, KeepRates] = field(default_factory=dict)
    gives: tuple[str, ...] = ()
    time_unit: str = "ms"

    def __post_init__(self) -> None:
        for name in [feature.vocabulary for feature in self.categorical] + [entry.vocabulary for entry in self.events]:
            self.vocabulary_size(name)
        names = [feature.name for feature in self.categorical] + list(self.numeric)
        twice = [name for name in names if names.count(name) > 1] + [t for t in self.tasks if self.tasks.count(t) > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} is there more than once")
        for name, side in self.numeric_sides.items():
            if name not in self.numeric or side not in SIDES:
                raise ValueError(f"numeric_sides: {name!r} is no numeric feature, or {side!r} is none of {SIDES}")
        if self.time_unit != "ms":
            raise ValueError(f"time_unit must be 'ms', got {self.time_unit!r}")
        if self.events and self.events[0].name != "item":
            raise ValueError(f"the first event field must be 'item', got {self.events[0].name!r}")
        if len(self.actions) > 16:
            raise ValueError(f"at most 16 actions fit the action code, got {len(self.actions)}")

    def vocabulary_size(self, name: str) -> int:
        """Rows of a vocabulary, the out-of-vocabulary row included."""
        if name not in self.vocabularies:
            raise ValueError(f"unknown vocabulary {name!r}{suggest(name, self.vocabularies)}")
        return self.vocabularies[name]

    @property
    def num_items(self) -> int:
        """Size of the item vocabulary, the out-of-vocabulary row included."""
        return self.vocabulary_size(self.item_vocabulary)

    @property
    def num_action_codes(self) -> int:
        """Number of distinct action codes, 2 ** len(actions)."""
        return 1 << len(self.actions)

    def capabilities(self) -> frozenset[str]:
        """What a dataset with this schema gives; see ``component.CAPABILITIES``."""
        found = set(self.gives)
        if self.events:
            found.add("history")
        if self.keep_rates:
            found.add("keep_rates")
        return frozenset(found)

    def require_task(self, task: str) -> str:
        """``task``, or a DataError naming the tasks that there are."""
        if task not in self.tasks:
            raise DataError(
                f"the dataset has no task {task!r}{suggest(task, self.tasks)}",
                where=f"schema tasks: {', '.join(self.tasks)}",
                fix="name one of these tasks, or import the log with that label column",
            )
        return task

    def without(self, names: Collection[str]) -> Schema:
        """This schema without some features, and without vocabularies that only they had.

        Raises:
            DataError: for a name that is no feature.
        """
        known = [feature.name for feature in self.categorical] + list(self.numeric)
        for name in names:
            if name not in known:
                raise DataError(
                    f"the dataset has no feature {name!r}{suggest(name, known)}",
                    where=f"features: {', '.join(known) or 'none'}",
                    fix="name features of the dataset",
                )
        categorical = tuple(feature for feature in self.categorical if feature.name not in names)
        used = {feature.vocabulary for feature in categorical} | {entry.vocabulary for entry in self.events}
        dropped = {feature.vocabulary for feature in self.categorical} - used - {self.item_vocabulary}
        return replace(
            self,
            categorical=categorical,
            numeric=tuple(name for name in self.numeric if name not in names),
            numeric_sides={name: side for name, side in self.numeric_sides.items() if name not in names},
            vocabularies={name: size for name, size in self.vocabularies.items() if name not in dropped},
        )

    def view_hash(self) -> str:
        """16 hex digits that change when any feature, vocabulary size or event field changes."""
        plain = self.to_dict()
        seen = {key: plain[key] for key in ("categorical", "numeric", "events", "actions", "vocabularies")}
        return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts and scalars, as ``schema.yaml`` holds them."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Schema:
        """The inverse of :meth:`to_dict`. Raises DataError on unknown or missing keys."""
        if not isinstance(plain, Mapping) or "tasks" not in plain:
            raise DataError("the dataset schema has no 'tasks'", where="schema.yaml", fix="import the log again")
        known = set(cls.__dataclass_fields__)
        for key in plain:
            if key not in known:
                raise DataError(f"unknown key {key!r} in a dataset schema{suggest(key, known)}", where="schema.yaml")
        try:
            return cls(
                tasks=tuple(plain["tasks"]),
                categorical=tuple(Categorical(**entry) for entry in plain.get("categorical", ())),
                numeric=tuple(plain.get("numeric", ())),
                numeric_sides=dict(plain.get("numeric_sides", {})),
                events=tuple(EventField(**entry) for entry in plain.get("events", ())),
                actions=tuple(plain.get("actions", ())),
                vocabularies=dict(plain.get("vocabularies", {})),
                item_vocabulary=plain.get("item_vocabulary", "item_id"),
                keep_rates={task: KeepRates(**rates) for task, rates in plain.get("keep_rates", {}).items()},
                gives=tuple(plain.get("gives", ())),
                time_unit=plain.get("time_unit", "ms"),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"the dataset schema cannot be read: {error}", where="schema.yaml", fix="import the log again"
            ) from error

    def feature_index(self) -> Iterator[tuple[int, Categorical]]:
        """``(column of Batch.categorical, feature)`` pairs."""
        return enumerate(self.categorical)
