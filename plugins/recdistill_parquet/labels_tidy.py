"""What lies in a label store's folders and who needs it: for ``verify``, which tells, and ``gc``, which removes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from recdistill_core.errors import DataError, IntegrityError
from recdistill_parquet import labels_log
from recdistill_parquet.labels_aligned import ALIGNED, META
from recdistill_parquet.labels_lease import WRITERS
from recdistill_parquet.labels_lock import LOCK, OWNER
from recdistill_parquet.labels_log import Head
from recdistill_parquet.labels_pins import PINS, read_pins
from recdistill_parquet.labels_segments import QUARANTINE, SEGMENTS
from recdistill_parquet.labels_state import SEGMENT_FILE, State

#: Names at the store's root that belong there; ``.tmp`` files are leftovers.
ROOT = (labels_log.MANIFEST, labels_log.LOG, SEGMENTS, QUARANTINE, PINS, ALIGNED, WRITERS, LOCK, OWNER)


@dataclass
class Needs:
    """Who needs which file.

    Attributes:
        head: the newest commit.
        states: ``{what: state}`` of the newest commit and of every pin.
        snapshots: ids of these.
        superseded: ``{segment file: time}`` of files that a commit has replaced, ms since the epoch, UTC.
        listed: files under ``segments`` and ``quarantine`` that any commit has ever listed.
    """

    head: Head
    states: dict[str, State] = field(default_factory=dict)
    snapshots: set[str] = field(default_factory=set)
    superseded: dict[str, int] = field(default_factory=dict)
    listed: set[tuple[str, str]] = field(default_factory=set)

    def files(self) -> set[tuple[str, str]]:
        """``(folder, name)`` of every segment and quarantine file that is needed."""
        segments = {(SEGMENTS, file) for state in self.states.values() for file in state.files()}
        return segments | {(QUARANTINE, file) for state in self.states.values() for file in state.aside_files()}


def needs(store: Path) -> Needs:
    """Read the manifest, the log and the pins. Raises IntegrityError if one of them is damaged."""
    head = labels_log.read_head(store)
    found = Needs(head, {"the newest snapshot": labels_log.read_state(store, head, shortcuts=False)}, {head.id})
    for pin in read_pins(store):
        try:
            at = labels_log.find_snapshot(store, pin.snapshot)
        except DataError as error:
            raise IntegrityError(
                f"the pin {pin.name!r} keeps a snapshot that the label store does not have: {pin.snapshot}",
                where=str(store / PINS / f"{pin.name}.json"),
                fix="restore the log from a backup, or unpin it",
            ) from error
        found.states[f"the pin {pin.name!r}"] = labels_log.read_state(store, at, shortcuts=False)
        found.snapshots.add(at.id)
    for entry in labels_log.history(store):
        for action in entry["actions"]:
            if action["do"] == "compact":
                found.superseded.update(dict.fromkeys(action["removed"], entry["at"]))
                found.listed.update((SEGMENTS, segment["file"]) for segment in action["segments"])
            elif action["do"] == "add":
                found.listed.update((SEGMENTS, segment["file"]) for segment in action["entry"]["segments"])
                found.listed.update((QUARANTINE, segment["file"]) for segment in action["entry"]["aside"])
    return found


@dataclass(frozen=True)
class Spare:
    """A file or folder that nobody needs.

    Attributes:
        path: where it is.
        why: ``leftover`` of a crash or of a writer at work; ``superseded`` by compaction; ``view`` of a snapshot that
            is neither the newest nor pinned; ``unknown``: not the store's.
        version: whose segment it is, or None.
        since: when it was superseded, ms since the epoch, UTC; None: its own time of change counts.
    """

    path: Path
    why: str
    version: str | None = None
    since: int | None = None


def spares(store: Path, needed: Needs) -> Iterator[Spare]:
    """Everything in the store's folders that nobody needs."""
    for path in _inside(store):
        if path.name not in ROOT:
            yield Spare(path, "leftover" if path.name.endswith(".tmp") else "unknown")
    keep = needed.files()
    for folder in (SEGMENTS, QUARANTINE):
        for path in _inside(store / folder):
            if (folder, path.name) in keep:
                continue
            version = path.name.rpartition("-")[0] if SEGMENT_FILE.fullmatch(path.name) else None
            if version is None:
                yield Spare(path, "unknown")
            elif (folder, path.name) in needed.listed:
                yield Spare(path, "superseded", version, needed.superseded.get(path.name))
            else:
                yield Spare(path, "leftover", version)
    yield from _log_spares(store, needed.head)
    for path in _inside(store / PINS):
        if path.suffix != ".json":
            yield Spare(path, "leftover" if path.name.endswith(".tmp") else "unknown")
    yield from _view_spares(store, needed)


def _log_spares(store: Path, head: Head) -> Iterator[Spare]:
    for path in _inside(store / labels_log.LOG):
        number = path.name.split(".")[0]
        if path.name.endswith(".tmp"):
            yield Spare(path, "leftover")
        elif not number.isdecimal() or path.suffix not in (".json", ".state"):
            yield Spare(path, "unknown")
        elif int(number) > head.number:
            yield Spare(path, "leftover")


def _view_spares(store: Path, needed: Needs) -> Iterator[Spare]:
    for path in _inside(store / ALIGNED):
        if path.name.startswith(".") or path.is_symlink():
            yield Spare(path, "leftover")
            continue
        try:
            meta = labels_log.checked((path / META).read_bytes(), path / META, "the aligned view's meta.json")
            if meta["snapshot"] not in needed.snapshots:
                yield Spare(path, "view")
        except (OSError, KeyError, IntegrityError):
            yield Spare(path, "leftover")


def _inside(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
