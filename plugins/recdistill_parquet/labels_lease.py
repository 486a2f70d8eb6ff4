"""Leases: which versions a living writer has uncommitted segments of, so that nobody tidies them away.

A lease is a locked file ``STORE/writers/<version>.<random>.lease``. The system drops the lock of a process that dies.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import weakref
from pathlib import Path

WRITERS = "writers"


class Lease:
    """Held from the first segment that is not committed to its commit or removal.

    Args:
        store: root of the store. version: whose segments.
    """

    def __init__(self, store: Path, version: str) -> None:
        (store / WRITERS).mkdir(exist_ok=True)
        while True:
            self.path = store / WRITERS / f"{version}.{secrets.token_hex(8)}.lease"
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            fcntl.flock(handle, fcntl.LOCK_EX)
            if self.path.exists():  # between the two calls it looked like a dead writer's and may have been removed
                break
            os.close(handle)
        self._close = weakref.finalize(self, os.close, handle)

    def release(self) -> None:
        """Remove the lease."""
        if self._close.alive:
            self.path.unlink(missing_ok=True)
            self._close()


def leased(store: Path) -> frozenset[str]:
    """Versions that living writers hold; leases of dead ones are removed."""
    found = set()
    for path in sorted((store / WRITERS).glob("*.lease")):
        try:
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            found.add(path.name.split(".")[0])
        finally:
            os.close(handle)
    return frozenset(found)
