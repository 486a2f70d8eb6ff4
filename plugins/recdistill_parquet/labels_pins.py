"""Pins: named snapshots of a label store whose files are kept; each is a small file ``STORE/pins/<name>.json``."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from recdistill_core.errors import DataError, IntegrityError, UsageError, suggest
from recdistill_core.files import sync, write_atomically
from recdistill_parquet import labels_log
from recdistill_parquet.labels_lock import locked
from recdistill_parquet.labels_log import Head
from recdistill_parquet.labels_segments import QUARANTINE, SEGMENTS
from recdistill_parquet.labels_state import State

PINS = "pins"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Pin:
    """``snapshot`` is kept under ``name`` since ``at`` (ms since the epoch, UTC) for whoever ``by`` says."""

    name: str
    snapshot: str
    by: str
    at: int


def check_name(name: str) -> str:
    """``name``, or a UsageError where it could not be part of a file name."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"pin {name!r} is not usable: 1 to 128 letters, digits, '.', '-' and '_', the first a letter or digit",
            fix="name the pin after the run that needs the snapshot",
        )
    return name


def pin(store: Path, name: str, by: str, head: Head | None) -> Pin:
    """Pin the commit ``head``, or the newest; see :meth:`recdistill_parquet.labels.ParquetLogitStore.pin`."""
    path = _path(store, name)
    if not store.is_dir() or labels_log.read_head(store).number == 0:
        raise DataError("the label store has no commit to pin", where=str(store), fix="commit labels first")
    with locked(store):
        head = head or labels_log.read_head(store)
        if path.exists():
            old = _read(path)
            if old.snapshot == head.id:
                return old
            raise UsageError(
                f"the pin {name!r} is there and keeps another snapshot, {old.snapshot}",
                where=str(path),
                fix="unpin it first, or choose another name",
            )
        require_files(store, labels_log.read_state(store, head), f"snapshot {head.id}")
        made = Pin(name, head.id, by, time.time_ns() // 1_000_000)
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
            sync(store)
        write_atomically(path, labels_log.sealed({"snapshot": made.snapshot, "by": made.by, "at": made.at}))
    return made


def unpin(store: Path, name: str) -> None:
    """Remove a pin. Raises DataError if there is none of this name."""
    path = _path(store, name)
    if not path.is_file():
        known = [found.name for found in read_pins(store)]
        raise DataError(
            f"the label store has no pin {name!r}{suggest(name, known)}",
            where=f"{store}; pins: {', '.join(known) or 'none'}",
            fix="name a pin that is there",
        )
    with locked(store):
        path.unlink(missing_ok=True)
        sync(path.parent)


def read_pins(store: Path) -> tuple[Pin, ...]:
    """All pins, by name. Raises IntegrityError if one is damaged."""
    return tuple(_read(path) for path in sorted((store / PINS).glob("*.json")))


def require_files(store: Path, state: State, what: str) -> None:
    """Raise IntegrityError unless all files of ``state`` are there."""
    wanted = [store / SEGMENTS / file for file in sorted(state.files())]
    wanted += [store / QUARANTINE / file for file in sorted(state.aside_files())]
    for path in wanted:
        if not path.is_file():
            raise IntegrityError(
                f"a file that {what} needs is gone", where=str(path), fix="pin a newer snapshot, or restore the file"
            )


def _path(store: Path, name: str) -> Path:
    return store / PINS / f"{check_name(name)}.json"


def _read(path: Path) -> Pin:
    what = f"the pin {path.stem!r} of the label store"
    fix = "remove the file if nobody needs the snapshot that it kept"
    if path.is_symlink():
        raise IntegrityError(f"{what} is a symbolic link; the store makes none", where=str(path), fix=fix)
    plain = labels_log.checked(path.read_bytes(), path, what)
    try:
        return Pin(path.stem, str(plain["snapshot"]), str(plain["by"]), int(plain["at"]))
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{what} is no pin: {error}", where=str(path), fix=fix) from error
