"""Kills a process at every step that it takes on disk, one after another.

A step is a call by which a process changes files: ``os.open`` for writing, ``os.write``, ``os.fsync``, ``os.replace``,
``os.rename``, ``os.unlink``, ``os.mkdir``, ``os.rmdir`` and the built-in ``open`` for writing, as the store and
``pathlib`` call them. The process dies by SIGKILL before the call, after it, or, for a write, after half of its bytes.
"""

from __future__ import annotations

import builtins
import gc
import io
import os
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MOMENTS = ("before", "after")
_CALLS = ("write", "fsync", "replace", "rename", "unlink", "mkdir", "rmdir")


class Killer:
    """Counts steps and kills at the ``at``-th one, from 0."""

    def __init__(self, at: int, moment: str) -> None:
        self.at, self.moment, self.count = at, moment, 0

    def step(self, call: Callable[..., Any], *given: Any, **named: Any) -> Any:
        number, self.count = self.count, self.count + 1  # one call may make another
        if number == self.at and self.moment == "before":
            self._die(call, *given)
        try:
            return call(*given, **named)
        finally:
            if number == self.at and self.moment == "after":
                self._die()

    def _die(self, call: Callable[..., Any] | None = None, *given: Any) -> None:
        if call is not None and call is _WRITE and len(given[1]) > 1:
            _WRITE(given[0], bytes(given[1])[: len(given[1]) // 2])  # a torn write
        os.kill(os.getpid(), signal.SIGKILL)


_WRITE = os.write


@contextmanager
def patched(killer: Killer) -> Iterator[None]:
    """Every step goes through ``killer``."""
    real: dict[tuple[Any, str], Any] = {(os, name): getattr(os, name) for name in (*_CALLS, "open")}
    real[builtins, "open"] = builtins.open
    real[io, "open"] = io.open

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given, **named: killer.step(call, *given, **named)

    def opened(path: Any, flags: int, *more: Any, **named: Any) -> int:
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        call = real[os, "open"]
        handle: int = killer.step(call, path, flags, *more, **named) if writes else call(path, flags, *more, **named)
        return handle

    def python_open(file: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        call = real[io, "open"]
        return (
            killer.step(call, file, mode, *more, **named)
            if set(mode) & set("wxa+")
            else call(file, mode, *more, **named)
        )

    for name in _CALLS:
        setattr(os, name, counted(real[os, name]))
    os.open = opened
    builtins.open = io.open = python_open  # type: ignore[assignment]  # the same function, counted
    try:
        yield
    finally:
        for (module, name), call in real.items():
            setattr(module, name, call)


def in_child(work: Callable[[], None], killer: Killer, steps: Path | None = None) -> bool:
    """Run ``work`` in a fork under ``killer``; whether it came to its end. Its number of steps goes to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # idle threads of libraries; the child uses none of them
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with patched(killer):
                work()
            if steps is not None:
                steps.write_text(str(killer.count))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0, "the work failed by itself"
    return True


def sweep(
    origin: Path | None,
    scratch: Path,
    work: Callable[[Path], None],
    check: Callable[[Path, bool], None],
    every: int = 1,
) -> int:
    """Kill ``work(copy of origin)`` at every step, and let ``check(copy, finished)`` look at what is left.

    Args:
        origin: the store before; None: none. scratch: an empty folder.
        work: what is killed. check: raises where the end state is wrong.
        every: take only every so-many-th kill.

    Returns:
        number of kills.
    """
    gc.freeze()  # a child copies fewer pages
    place = scratch / "store"
    kills = [(-1, "never")]
    for number, (at, moment) in enumerate(kills):
        _renew(origin, place)
        finished = in_child(lambda: work(place), Killer(at, moment), scratch / "steps")
        if number == 0:
            assert finished
            steps = int((scratch / "steps").read_text())
            kills += [(at, moment) for at in range(steps) for moment in MOMENTS][::every]
        try:
            check(place, finished)
        except Exception as error:
            error.add_note(f"killed {moment} step {at} of {steps}")
            raise
        assert finished == (number == 0), f"nothing was killed {moment} step {at} of {steps}"
    return len(kills) - 1


def _renew(origin: Path | None, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    if origin is not None:
        shutil.copytree(origin, place, symlinks=True)
