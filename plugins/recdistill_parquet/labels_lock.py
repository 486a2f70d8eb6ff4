"""The lock of a label store: one process at a time commits, and everybody can see who."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from recdistill_core.errors import IntegrityError
from recdistill_core.files import write_atomically

log = logging.getLogger("recdistill.labels")
LOCK, OWNER = "store.lock", "store.owner"
#: Seconds to wait for another process's commit.
LOCK_TIMEOUT = 120.0


def owner() -> str:
    """Who this process is: ``pid@host``."""
    return f"{os.getpid()}@{socket.gethostname()}"


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Hold the store's lock.

    The system releases the lock of a process that dies, so a dead owner blocks nobody; that it never released the lock
    itself is logged by the next one.

    Raises:
        IntegrityError: if another process holds it for too long.
    """
    lock = FileLock(store / LOCK, timeout=LOCK_TIMEOUT)
    try:
        lock.acquire()
    except Timeout as error:
        raise IntegrityError(
            f"another process has held the label store's lock for {LOCK_TIMEOUT:.0f} s: {_said(store) or 'unknown'}",
            where=str(store / LOCK),
            fix="wait for its commit to end, or end that process; the lock goes with it",
        ) from error
    try:
        left = _said(store)
        if left:
            log.warning("the label store %s was left locked by %s, which ended in the middle of a commit", store, left)
        _say(store)
        try:
            yield
        finally:
            (store / OWNER).unlink(missing_ok=True)
    finally:
        lock.release()


def _say(store: Path) -> None:
    """Write the owner file; it only helps people, so a full disk does not stop a ``gc`` that would empty it."""
    try:
        write_atomically(store / OWNER, json.dumps({"owner": owner(), "since": time.time_ns() // 1_000_000}))
    except OSError as error:
        log.warning("cannot say in %s who holds the lock: %s", store / OWNER, error)


def _said(store: Path) -> str:
    """What the owner file says, or an empty string."""
    try:
        plain = json.loads((store / OWNER).read_text())
        return f"{plain['owner']} since {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(plain['since'] / 1000))}"
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError):
        return "an unknown process (its owner file is damaged)"
