"""Jobs for engines: plain classes that pickle by name, so that they reach other processes where recdistill is."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Seconds that a block of :class:`Marks` waits at most for the file that says that the engine was closed.
PATIENCE = 0.4
CLOSED = "closed"


@dataclass
class Echo:
    """Tells of each block the block itself; its settings are there to be changed by mistake."""

    settings: dict[str, Any] = field(default_factory=lambda: {"list": [1, 2]})

    def open(self) -> Callable[[Any], Any]:
        """Does nothing."""
        return lambda block: block


@dataclass
class Sums:
    """Tells of each block, a list, its sum, or None where it is empty."""

    def open(self) -> Callable[[Sequence[int]], int | None]:
        """Adds."""
        return lambda block: sum(block) if block else None


@dataclass
class Opens:
    """Leaves a file in ``folder`` for each time that it is opened."""

    folder: str

    def open(self) -> Callable[[int], int]:
        """Does nothing else."""
        (Path(self.folder) / uuid.uuid4().hex).touch()
        return lambda block: block


@dataclass
class Threads:
    """Tells of each block whether it is done in the thread that opened the job."""

    def open(self) -> Callable[[int], bool]:
        """Compares."""
        mine = threading.get_ident()
        return lambda block: threading.get_ident() == mine


@dataclass
class Raises:
    """Fails with ``error`` at the block ``at``, or where it is opened if there is no such block."""

    error: Exception
    at: Any = None

    def open(self) -> Callable[[Any], Any]:
        """Does nothing else."""
        if self.at is None:
            raise self.error

        def do(block: Any) -> Any:
            if block == self.at:
                raise self.error
            return block

        return do


@dataclass
class Marks:
    """Leaves a file for each block that is begun, and waits in it unless the engine has been closed.

    Attributes:
        folder: for the files; the name is the block's, the text the process's id. quick: blocks that do not wait.
    """

    folder: str
    quick: int

    def open(self) -> Callable[[int], int]:
        """Waits."""

        def do(block: int) -> int:
            place = Path(self.folder)
            (place / f"{block}-{uuid.uuid4().hex}").write_text(str(os.getpid()))
            until = time.monotonic() + PATIENCE
            while block >= self.quick and not (place / CLOSED).exists() and time.monotonic() < until:
                time.sleep(0.01)
            return block

        return do


def begun(folder: Path) -> Mapping[str, int]:
    """``{file of a block that was begun: its process}``."""
    files = [path for path in folder.iterdir() if path.name != CLOSED]
    return {path.name: int(text) for path in files if (text := path.read_text())}
