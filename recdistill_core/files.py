"""Files that are on disk whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or nothing, durably; the directory must exist.

    A symbolic link in the file's place is replaced, and none is followed.
    """
    partial = path.with_name(path.name + ".tmp")
    with open(partial, "w", encoding="utf-8", opener=_no_link) as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
    sync(path.parent)


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


@contextmanager
def whole_or_absent(path: Path) -> Iterator[Path]:
    """A place to write one file or folder at; it becomes ``path``, durably, where the block ends without an exception.

    The place has the name of ``path`` and lies in a scratch folder beside it, so several files may be written there;
    what is not at the place itself is forgotten.
    """
    scratch = path.with_name(f".{path.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        place = scratch / path.name
        yield place
        sync_tree(place)
        place.replace(path)
        sync(path.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def usual_mode(path: Path) -> None:
    """Give a file the permissions that ``open`` would have given it (0666 less the umask).

    safetensors leaves its files readable to their owner alone, and a model is often served under another user.
    """
    probe = path.with_name(f".{path.name}.mode")  # the umask itself cannot be read without setting it for all threads
    try:
        probe.touch()
        path.chmod(probe.stat().st_mode & 0o777)
    finally:
        probe.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make one file, or the names in a directory, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(root: Path) -> None:
    """Make every file and directory under ``root`` durable."""
    for path in (root, *root.rglob("*")):
        sync(path)
