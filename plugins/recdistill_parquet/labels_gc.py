"""Removes what neither the newest state of a label store nor a pinned snapshot needs."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recdistill_core.errors import UsageError
from recdistill_parquet.labels_lease import leased
from recdistill_parquet.labels_lock import locked
from recdistill_parquet.labels_log import require_store
from recdistill_parquet.labels_tidy import Spare, needs, spares

#: A day: longer than any commit, and than a student that has just opened a snapshot needs to read it.
GRACE = 86_400.0


@dataclass(frozen=True)
class Removed:
    """A file or folder that was removed, or would be: its path below the store, its bytes and why."""

    path: str
    bytes: int
    why: str


@dataclass(frozen=True)
class Collected:
    """What ``gc`` did.

    Attributes:
        removed: what is gone. kept: spare files that are younger than the grace, or of a version that is written to.
        dry_run: whether nothing was removed at all.
    """

    removed: tuple[Removed, ...]
    kept: tuple[Removed, ...]
    dry_run: bool

    @property
    def bytes(self) -> int:
        """Bytes of everything that is gone."""
        return sum(entry.bytes for entry in self.removed)


def collect(
    store: Path, grace_seconds: float = GRACE, *, dry_run: bool = False, clock: Callable[[], float] = time.time
) -> Collected:
    """Remove spare files that have been spare for longer than the grace.

    A segment that was compacted away is spare since that commit, anything else since its last change. Files of unknown
    origin and segments of a version that a living writer is at work on stay.

    Args:
        store: root of the store. grace_seconds: >= 0. dry_run: only say what would be removed.
        clock: seconds since the epoch.

    Raises:
        UsageError: for a negative grace. DataError: if there is no store.
        IntegrityError: if the manifest, the log or a pin is damaged; nothing is removed then.
    """
    if not grace_seconds >= 0:
        raise UsageError(f"grace_seconds must be >= 0, got {grace_seconds}")
    removed, kept = [], []
    require_store(store)
    with locked(store):
        found = [spare for spare in spares(store, needs(store)) if spare.why != "unknown"]
        busy = leased(store)  # after the look: a segment is never older than its writer's lease
        now = clock()
        for spare in found:
            entry = Removed(str(spare.path.relative_to(store)), _size(spare.path), spare.why)
            if spare.version in busy or now - _since(spare) < grace_seconds:
                kept.append(entry)
                continue
            if not dry_run:
                _remove(spare.path)
            removed.append(entry)
    return Collected(tuple(removed), tuple(kept), dry_run)


def _since(spare: Spare) -> float:
    changed = spare.path.lstat().st_mtime  # later than `since` where a new file has the name of one that is gone
    return changed if spare.since is None else max(changed, spare.since / 1000)


def _size(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(_size(Path(entry.path)) for entry in os.scandir(path))


def _remove(path: Path) -> None:
    """Remove a file, a link (never what it leads to) or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
