"""The manifest of a label store: which teacher versions there are and which segment files hold their logits.

``manifest.json`` is the only thing that makes a segment visible. It is replaced as a whole (temporary file, fsync,
rename, fsync of the directory), so a reader sees the state before a commit or after it and nothing between.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from recdistill_core.errors import DataError, IntegrityError, LeakError, UsageError, suggest
from recdistill_core.files import write_atomically
from recdistill_core.fingerprint import snapshot_digest
from recdistill_core.interfaces import CaptureMode, LabelVersion

FORMAT = "recdistill.labels"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
LOCK = "manifest.lock"
SEGMENTS = "segments"

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_SEGMENT_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}-[0-9]{6,}\.parquet")


@dataclass(frozen=True)
class Segment:
    """One immutable Parquet file under ``segments/``: its name, hex sha256, rows and size in bytes."""

    file: str
    sha256: str
    rows: int
    bytes: int

    def __post_init__(self) -> None:
        if not _SEGMENT_FILE.fullmatch(self.file):
            raise ValueError(f"segment file name {self.file!r} is none that this store writes")


@dataclass(frozen=True)
class VersionEntry:
    """What the manifest says of one teacher version; segments in the order of their commits."""

    version: str
    mode: CaptureMode
    tasks: tuple[str, ...]
    view: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    segments: tuple[Segment, ...] = ()

    @property
    def count(self) -> int:
        """Committed examples."""
        return sum(segment.rows for segment in self.segments)

    def label_version(self) -> LabelVersion:
        """The public face of this entry."""
        return LabelVersion(self.version, self.mode, self.tasks, self.view, self.count, dict(self.facts))

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
class Manifest:
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

    def with_segments(self, entry: VersionEntry, segments: tuple[Segment, ...]) -> Manifest:
        """This manifest with ``segments`` added to the version of ``entry``; facts of the later commit win."""
        old = self.get(entry.version)
        if old is None:
            return Manifest((*self.entries, replace(entry, segments=segments)))
        merged = replace(old, segments=old.segments + segments, facts={**old.facts, **entry.facts})
        return Manifest(tuple(merged if known is old else known for known in self.entries))

    def files(self) -> frozenset[str]:
        """Names of all committed segment files."""
        return frozenset(segment.file for entry in self.entries for segment in entry.segments)

    def snapshot_id(self) -> str:
        """32 hex digits of what is committed; segments carry version, mode and view inside, so they cover those."""
        return snapshot_digest(
            {
                f"{entry.version}/{number}": segment.sha256
                for entry in self.entries
                for number, segment in enumerate(entry.segments)
            }
        )


def check_version(version: str) -> str:
    """``version``, or a UsageError where it could not be part of a file name."""
    if not _VERSION.fullmatch(version):
        raise UsageError(
            f"teacher version {version!r} is not usable: 1 to 128 letters, digits, '-' and '_', the first a letter "
            "or digit",
            fix="use the teacher's fingerprint as its version",
        )
    return version


def load_manifest(store: Path) -> Manifest:
    """What is committed in ``store``; an empty manifest where nothing ever was.

    Raises:
        IntegrityError: if the manifest is damaged, of an unknown format, or gone while segments are there.
    """
    path = store / MANIFEST
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        if any((store / SEGMENTS).glob("*.parquet")):
            raise IntegrityError(
                "the label store has segments but no manifest", where=str(path), fix="restore manifest.json"
            ) from None
        return Manifest()
    except NotADirectoryError:
        raise UsageError(
            "the label store is a file, not a directory", where=str(store), fix="give a directory"
        ) from None
    return _parse(text, path)


def _parse(text: bytes, path: Path) -> Manifest:
    restore = "restore manifest.json from a backup, or capture into a new store"
    try:
        plain = json.loads(text)
        found = (plain["format"], plain["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError("the label store's manifest is damaged", where=str(path), fix=restore) from error
    if found != (FORMAT, FORMAT_VERSION):
        raise IntegrityError(
            f"the label store has format {found[0]!r} version {found[1]!r}; this release reads {FORMAT!r} version "
            f"{FORMAT_VERSION}",
            where=str(path),
            fix="read it with the release of recdistill that wrote it",
        )
    try:
        if plain["sha256"] != _digest(plain["versions"]):
            raise ValueError("its content does not match its own sha256")
        return Manifest(tuple(_entry(entry) for entry in plain["versions"]))
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"the label store's manifest is damaged: {error}", where=str(path), fix=restore) from error


def _entry(plain: Mapping[str, Any]) -> VersionEntry:
    return VersionEntry(
        version=plain["version"],
        mode=CaptureMode(plain["mode"]),
        tasks=tuple(plain["tasks"]),
        view=plain["view"],
        facts=dict(plain["facts"]),
        segments=tuple(Segment(**segment) for segment in plain["segments"]),
    )


def _digest(versions: Any) -> str:
    return hashlib.sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest()


def save_manifest(store: Path, manifest: Manifest) -> None:
    """Replace the manifest of ``store`` atomically and durably. The caller holds the store's lock."""
    versions = json.loads(json.dumps([asdict(entry) for entry in manifest.entries]))
    plain = {"format": FORMAT, "format_version": FORMAT_VERSION, "sha256": _digest(versions), "versions": versions}
    write_atomically(store / MANIFEST, json.dumps(plain, indent=1, sort_keys=True))
