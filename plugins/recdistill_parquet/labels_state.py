"""What a label store holds after a number of commits: versions, their segments, and what was revoked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from recdistill_core.errors import DataError, IntegrityError, LeakError, UsageError, suggest
from recdistill_core.labels import CaptureMode, LabelVersion

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
SEGMENT_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}-[0-9]{6,}\.parquet")


@dataclass(frozen=True)
class Segment:
    """One immutable Parquet file under ``segments/``.

    Attributes:
        file, sha256: its name and the hex digest of its bytes. rows, bytes: its size.
        first_id, last_id: smallest and largest example id.
        first_at, last_at: smallest and largest ``scored_at``, ms since the epoch, UTC.
    """

    file: str
    sha256: str
    rows: int
    bytes: int
    first_id: int
    last_id: int
    first_at: int
    last_at: int

    def __post_init__(self) -> None:
        if not SEGMENT_FILE.fullmatch(self.file):
            raise ValueError(f"segment file name {self.file!r} is none that this store writes")


@dataclass(frozen=True)
class Revocation:
    """Labels of a version that were scored at ``since`` or later (ms since the epoch, UTC; None: all) are invisible."""

    since: int | None
    at: int
    reason: str


@dataclass(frozen=True)
class VersionEntry:
    """One teacher version; segments in the order of their commits.

    Attributes:
        duplicates: second deliveries that were dropped because they were equal.
        aside: files under ``quarantine/`` with the rows that were set aside.
        revoked: why labels are invisible, or None.
    """

    version: str
    mode: CaptureMode
    tasks: tuple[str, ...]
    view: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    segments: tuple[Segment, ...] = ()
    duplicates: int = 0
    aside: tuple[Segment, ...] = ()
    revoked: Revocation | None = None

    @property
    def quarantined(self) -> int:
        """Rows that were set aside."""
        return sum(segment.rows for segment in self.aside)

    @property
    def count(self) -> int:
        """Committed examples, revoked ones included."""
        return sum(segment.rows for segment in self.segments)

    def label_version(self) -> LabelVersion:
        """The public face of this entry."""
        return LabelVersion(
            self.version,
            self.mode,
            self.tasks,
            self.view,
            self.count,
            dict(self.facts),
            self.duplicates,
            self.quarantined,
            self.revoked.reason if self.revoked else "",
            self.revoked.since if self.revoked else None,
        )

    def require_same(self, other: VersionEntry, where: str) -> None:
        """Refuse labels of this version that were captured otherwise than ``other``.

        Raises:
            LeakError: if the capture modes differ.
            IntegrityError: if the tasks or the feature views differ.
        """
        fix = "capture under a version of its own; a version is one teacher, scored in one way"
        if self.mode != other.mode:
            raise LeakError(
                f"version {self.version!r} holds {self.mode.value} labels; {other.mode.value} ones cannot join them",
                where=where,
                fix=fix,
            )
        for name in ("tasks", "view"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise IntegrityError(
                    f"version {self.version!r} has {name} {mine!r}; the writer has {theirs!r}", where=where, fix=fix
                )


@dataclass(frozen=True)
class State:
    """All committed versions, oldest first."""

    entries: tuple[VersionEntry, ...] = ()

    def get(self, version: str) -> VersionEntry | None:
        """The entry of ``version``, or None."""
        return next((entry for entry in self.entries if entry.version == version), None)

    def require(self, version: str, where: str) -> VersionEntry:
        """The entry of ``version``, or a DataError that lists the versions there are."""
        entry = self.get(version)
        if entry is None:
            known = [entry.version for entry in self.entries]
            there = f"; versions: {', '.join(known)}" if known else "; the store is empty"
            raise DataError(
                f"the label store has no version {version!r}{suggest(version, known)}",
                where=f"{where}{there}",
                fix="name a version that is there, or capture the teacher's labels first",
            )
        return entry

    def files(self) -> frozenset[str]:
        """Names of all committed segment files."""
        return frozenset(segment.file for entry in self.entries for segment in entry.segments)

    def aside_files(self) -> frozenset[str]:
        """Names of all committed files under ``quarantine/``."""
        return frozenset(segment.file for entry in self.entries for segment in entry.aside)

    def after(self, actions: Sequence[Mapping[str, Any]]) -> State:
        """The state once ``actions`` are done. Raises ValueError or KeyError for one that makes no sense."""
        state = self
        for action in actions:
            state = state._after_one(action)
        return state

    def _after_one(self, action: Mapping[str, Any]) -> State:
        if action["do"] == "add":
            return self._added(action)
        old = self.get(action["version"])
        if old is None:
            raise ValueError(f"no version {action['version']!r} to {action['do']}")
        if action["do"] == "revoke":
            return self._with(replace(old, revoked=Revocation(action["since"], action["at"], action["reason"])))
        if action["do"] == "restore":
            return self._with(replace(old, revoked=None))
        if action["do"] == "compact":
            return self._with(_compacted(old, action["removed"], _segments(action["segments"])))
        raise ValueError(f"unknown action {action['do']!r}")

    def _added(self, action: Mapping[str, Any]) -> State:
        entry = _entry(action["entry"])
        old = self.get(entry.version)
        if old is None:
            return State((*self.entries, entry))
        return self._with(
            replace(
                old,
                segments=old.segments + entry.segments,
                facts={**old.facts, **entry.facts},
                duplicates=old.duplicates + entry.duplicates,
                aside=old.aside + entry.aside,
            )
        )

    def _with(self, entry: VersionEntry) -> State:
        return State(tuple(entry if known.version == entry.version else known for known in self.entries))

    def plain(self) -> list[dict[str, Any]]:
        """Plain lists, dicts and scalars."""
        return [asdict(entry) for entry in self.entries]

    @classmethod
    def parse(cls, plain: Sequence[Mapping[str, Any]]) -> State:
        """The inverse of :meth:`plain`."""
        return cls(tuple(_entry(entry) for entry in plain))


def add_action(entry: VersionEntry) -> dict[str, Any]:
    """The action that commits the segments of ``entry``."""
    return {"do": "add", "version": entry.version, "entry": asdict(entry)}


def check_version(version: str) -> str:
    """``version``, or a UsageError where it could not be part of a file name."""
    if not _VERSION.fullmatch(version):
        raise UsageError(
            f"teacher version {version!r} is not usable: 1 to 128 letters, digits, '-' and '_', the first a letter "
            "or digit",
            fix="use the teacher's fingerprint as its version",
        )
    return version


def _compacted(old: VersionEntry, removed: Sequence[str], segments: tuple[Segment, ...]) -> VersionEntry:
    """``old`` with ``segments`` in the place of the files ``removed``, its first ones, which hold the same rows."""
    gone = old.segments[: len(removed)]
    if [segment.file for segment in gone] != list(removed):
        raise ValueError(f"version {old.version!r} does not start with the files that were compacted")
    if sum(segment.rows for segment in gone) != sum(segment.rows for segment in segments):
        raise ValueError(f"the compacted files of version {old.version!r} have another number of rows")
    return replace(old, segments=segments + old.segments[len(gone) :])


def _segments(plain: Sequence[Mapping[str, Any]]) -> tuple[Segment, ...]:
    return tuple(Segment(**segment) for segment in plain)


def _entry(plain: Mapping[str, Any]) -> VersionEntry:
    revoked = plain["revoked"]
    return VersionEntry(
        version=plain["version"],
        mode=CaptureMode(plain["mode"]),
        tasks=tuple(plain["tasks"]),
        view=plain["view"],
        facts=dict(plain["facts"]),
        segments=_segments(plain["segments"]),
        duplicates=int(plain["duplicates"]),
        aside=_segments(plain["aside"]),
        revoked=Revocation(**revoked) if revoked else None,
    )
