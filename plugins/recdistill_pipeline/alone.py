"""One process at a time: at a step of a run, or at a sweep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from recdistill_core.errors import UsageError


@contextmanager
def alone(lock: Path, what: str, where: Path) -> Iterator[None]:
    """Hold a lock, which goes with this process however it ends.

    Args:
        lock: its file; the folder exists. what: that another process may be at. where: for the message.

    Raises:
        UsageError: at once, if another process holds it.
    """
    held = FileLock(lock, timeout=0)
    try:
        held.acquire()
    except Timeout as error:
        raise UsageError(
            f"another process is at {what}", where=str(where), fix="wait for it, or give another --out"
        ) from error
    try:
        yield
    finally:
        held.release()
