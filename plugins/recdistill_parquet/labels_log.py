"""The commit log of a label store: a chain of immutable entries under one small manifest.

::

    STORE/manifest.json             which entry is the newest: its number and its id; replaced atomically
    STORE/log/000000000012.json     one commit: its actions, and the id of the entry before it; never changed
    STORE/log/000000000064.state    the whole state after that commit, so that opening a store reads few files

An entry's id is the sha256 of its content, which names the id before it: an id therefore names everything that was ever
committed up to it, and any older snapshot can be read as it was. The manifest is the commit: an entry beyond it is a
leftover of a crash, which the next commit replaces.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from recdistill_core.errors import DataError, IntegrityError, UsageError
from recdistill_core.files import sync, write_atomically
from recdistill_parquet.labels_state import State

FORMAT = "recdistill.labels"
FORMAT_VERSION = 2
MANIFEST = "manifest.json"
LOG = "log"
#: Commits between two files that hold the whole state.
CHECKPOINT_EVERY = 64
#: Id of the empty store.
EMPTY = "0" * 32
RESTORE = "restore it from a backup, or capture into a new store"


@dataclass(frozen=True)
class Head:
    """The newest commit: its number, 0 for the empty store, and its id."""

    number: int = 0
    id: str = EMPTY


def read_head(store: Path) -> Head:
    """What ``manifest.json`` says; the empty head where nothing ever was.

    Raises:
        IntegrityError: if the manifest is damaged, of an unknown format, or gone while there are commits.
        UsageError: if the store is a file.
    """
    path = store / MANIFEST
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        if any((store / LOG).glob("*.json")) or any((store / "segments").glob("*.parquet")):
            raise IntegrityError("the label store has commits but no manifest", where=str(path), fix=RESTORE) from None
        return Head()
    except NotADirectoryError:
        raise UsageError(
            "the label store is a file, not a directory", where=str(store), fix="give a directory"
        ) from None
    return _head(text, path)


@lru_cache
def _head(text: bytes, path: Path) -> Head:
    """What a manifest says; the store looks at it in every read, and it seldom changes."""
    _require_own(text, path.parent)
    plain = checked(text, path, "the label store's manifest")
    return Head(int(plain["number"]), str(plain["id"]))


def _require_own(text: bytes, folder: Path) -> None:
    """Raise DataError where the manifest is that of a run or of a dataset, in which people look for labels."""
    try:
        names = set(json.loads(text))
    except (ValueError, TypeError):
        return
    for sign, kind in (("config_digest", "run directory"), ("time_range", "dataset")):
        if sign in names and "format_version" not in names:
            inside = folder / "labels"
            raise DataError(
                f"this is a {kind}, not a label store",
                where=str(folder),
                fix=f"give {inside}" if inside.is_dir() else "give the directory that labels were written to",
            )


def write_head(store: Path, head: Head) -> None:
    """Make ``head`` the newest commit, durably."""
    write_atomically(store / MANIFEST, sealed({"number": head.number, "id": head.id}))


def read_state(store: Path, head: Head, known: tuple[Head, State] | None = None, *, shortcuts: bool = True) -> State:
    """The state after the commit ``head``.

    Args:
        known: a head and its state that were read before; entries up to it are not read again.
        shortcuts: start from a stored state where there is one.

    Raises:
        IntegrityError: if an entry is missing, damaged or does not follow the one before it.
    """
    if head.number == 0:
        return State()
    start, state = _nearest(store, head, known) if shortcuts else (Head(), State())
    parent = start.id
    for number in range(start.number + 1, head.number + 1):
        entry, found = _entry(store, number)
        if entry["parent"] != parent:
            raise IntegrityError(
                f"commit {number} of the label store does not follow commit {number - 1}",
                where=str(entry_path(store, number)),
                fix=RESTORE,
            )
        try:
            state, parent = state.after(entry["actions"]), found
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"commit {number} of the label store makes no sense: {error}",
                where=str(entry_path(store, number)),
                fix=RESTORE,
            ) from error
    if parent != head.id:
        raise IntegrityError(
            f"commit {head.number} of the label store is another one than the manifest names",
            where=str(entry_path(store, head.number)),
            fix=RESTORE,
        )
    return state


def find_snapshot(store: Path, snapshot: str) -> Head:
    """The commit whose id is ``snapshot``, or starts with it (8 digits or more).

    Raises:
        DataError: if there is none, or more than one.
    """
    head = read_head(store)
    found = [
        Head(number, id)
        for number in range(head.number, 0, -1)
        if (id := _entry(store, number)[1]).startswith(snapshot)
    ]
    if len(snapshot) < 8 or len(found) != 1:
        told = f"the label store has {'more than one' if found else 'no'} snapshot {snapshot!r}"
        raise DataError(
            told if len(snapshot) >= 8 else f"{snapshot!r} has too few digits to name a snapshot",
            where=str(store),
            fix="name a snapshot that 'recdistill labels log' lists, by 8 digits of its id or more",
        )
    return found[0]


def append(store: Path, head: Head, state: State, actions: Sequence[Mapping[str, Any]], at: int, by: str) -> Head:
    """Commit ``actions`` on top of ``head``; the caller holds the store's lock, and ``state`` is that of ``head``."""
    number = head.number + 1
    if not (store / LOG).is_dir():
        (store / LOG).mkdir(exist_ok=True)
        sync(store)
    entry = {"number": number, "parent": head.id, "at": at, "by": by, "actions": list(actions)}
    text = sealed(entry)
    write_atomically(entry_path(store, number), text)
    made = Head(number, _id(json.loads(text)))
    if number % CHECKPOINT_EVERY == 0:
        after = state.after(json.loads(text)["actions"])
        write_atomically(_state_path(store, number), sealed({"number": number, "id": made.id, "state": after.plain()}))
    write_head(store, made)
    return made


def require_store(store: Path) -> None:
    """Raise DataError unless a label store lies there."""
    if not (store / MANIFEST).exists() and read_head(store).number == 0:
        raise DataError(
            "there is no label store", where=str(store), fix="give the directory that labels were written to"
        )


def history(store: Path, newest: int | None = None) -> list[dict[str, Any]]:
    """Commits, oldest first: number, id, time (ms since the epoch, UTC), writer and actions.

    Args:
        newest: only so many, the last ones; None: all.
    """
    last = read_head(store).number
    first = 1 if newest is None else max(last - newest + 1, 1)
    return [{**entry, "id": id} for entry, id in (_entry(store, number) for number in range(first, last + 1))]


def entry_path(store: Path, number: int) -> Path:
    """The file of a commit."""
    return store / LOG / f"{number:012d}.json"


def _state_path(store: Path, number: int) -> Path:
    return store / LOG / f"{number:012d}.state"


def _nearest(store: Path, head: Head, known: tuple[Head, State] | None) -> tuple[Head, State]:
    """The nearest state at or before ``head`` that is at hand: in memory, in a file, or the empty one."""
    if known is None or known[0].number > head.number or not _is(store, known[0]):
        known = Head(), State()
    for number in range(head.number - head.number % CHECKPOINT_EVERY, known[0].number, -CHECKPOINT_EVERY):
        try:
            plain = checked(_state_path(store, number).read_bytes(), _state_path(store, number), "")
            return Head(number, plain["id"]), State.parse(plain["state"])
        except (OSError, IntegrityError, KeyError, TypeError, ValueError):
            continue  # it only saves time: without it the entries are read
    return known


def _is(store: Path, head: Head) -> bool:
    """Whether the store still has the commit that was read before; it may have been replaced by another store."""
    return head.number == 0 or _entry(store, head.number)[1] == head.id


def _entry(store: Path, number: int) -> tuple[dict[str, Any], str]:
    path = entry_path(store, number)
    what = f"commit {number} of the label store"
    try:
        plain = checked(path.read_bytes(), path, what)
    except FileNotFoundError as error:
        raise IntegrityError(f"{what} is missing", where=str(path), fix=RESTORE) from error
    if plain.get("number") != number:
        raise IntegrityError(f"{what} says that it is commit {plain.get('number')}", where=str(path), fix=RESTORE)
    return plain, _id(plain)


def sealed(plain: Mapping[str, Any]) -> str:
    """The text of a file with this content, its format and a sha256 of both."""
    body = {"format": FORMAT, "format_version": FORMAT_VERSION, **plain}
    body = json.loads(json.dumps(body))
    return json.dumps({**body, "sha256": _digest(body)}, indent=1, sort_keys=True)


def checked(text: bytes, path: Path, what: str) -> dict[str, Any]:
    """The content of a sealed file, without its seal.

    Raises:
        IntegrityError: if ``what``, which lies at ``path``, is damaged or of an unknown format.
    """
    try:
        plain = json.loads(text)
        found, seal = (plain["format"], plain["format_version"]), plain.pop("sha256")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{what} is damaged", where=str(path), fix=RESTORE) from error
    if found != (FORMAT, FORMAT_VERSION):
        raise IntegrityError(
            f"the label store has format {found[0]!r} version {found[1]!r}; this release reads {FORMAT!r} version "
            f"{FORMAT_VERSION}",
            where=str(path),
            fix="read it with the release of recdistill that wrote it",
        )
    if seal != _digest(plain):
        raise IntegrityError(
            f"{what} is damaged: its content does not match its own sha256", where=str(path), fix=RESTORE
        )
    return dict(plain)


def _digest(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _id(plain: Mapping[str, Any]) -> str:
    """32 hex digits of an entry without its seal."""
    return _digest({key: value for key, value in plain.items() if key != "sha256"})[:32]
