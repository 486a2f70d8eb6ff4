"""What one process does for a sweep: check runs, train a teacher or a raw student that several share, or do a run."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from recdistill_core.errors import RecdistillError

#: Seconds that a process may take to end once it was asked to.
GRACE = 30.0


@dataclass(frozen=True)
class Task:
    """Work for one process, picklable.

    Attributes:
        title: for messages. kind: ``check``, ``teacher``, ``raw`` or ``run``. log: file for what the process prints.
        runs: ``{run directory: resolved configuration}``; but for ``check`` it is one.
        seed, label: of the teacher or the raw student.
        folder: working directory, which relative paths in the configurations start from.
    """

    title: str
    kind: str
    log: Path
    runs: dict[Path, dict[str, Any]]
    seed: int = 0
    label: str = ""
    folder: Path = field(default_factory=Path.cwd)


@dataclass(frozen=True)
class Outcome:
    """What came of a task.

    Attributes:
        seconds: that it took. failures: ``{run directory: {"kind", "error"}}``, empty where all went well.
    """

    seconds: float
    failures: dict[Path, dict[str, str]]


@dataclass(frozen=True)
class Isolated:
    """The job of a sweep for an engine: each block, a :class:`Task`, in a process of its own."""

    def open(self) -> Callable[[Task], Outcome]:
        """See :meth:`recdistill_core.engine.Job.open`."""
        return lambda task: next(iter(in_processes([task], 1)))[1]


def in_processes(
    tasks: Sequence[Task], workers: int, started: Callable[[Task], None] = lambda task: None
) -> Iterator[tuple[int, Outcome]]:
    """Do tasks, each in a process of its own, so that whatever ends one of them ends no other.

    Args:
        tasks: what to do. workers: how many at a time. started: told of a task when it is begun.

    Yields:
        ``(place in tasks, outcome)`` as they are finished. Closing the generator ends the processes.
    """
    # a process starts in no time from one that has imported everything, and has no thread of ours
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["recdistill_pipeline.run", "recdistill_sweep.tasks"])
    waiting, running = list(enumerate(tasks)), dict[Any, tuple[int, Any, Connection, float]]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                place, task = waiting.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_process, args=(task, theirs))
                started(task)
                process.start()
                theirs.close()
                running[process.sentinel] = (place, process, ours, time.monotonic())
            for sentinel in wait(list(running)):
                place, process, ours, began = running.pop(sentinel)
                process.join()
                yield place, Outcome(time.monotonic() - began, _answer(ours, process.exitcode, tasks[place]))
    finally:
        _end([process for _, process, _, _ in running.values()])


def _end(processes: Sequence[Any]) -> None:
    for process in processes:
        process.terminate()
    until = time.monotonic() + GRACE
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _answer(connection: Connection, code: int | None, task: Task) -> dict[Path, dict[str, str]]:
    """What the process has told; where it told nothing, how it ended."""
    with connection, suppress(EOFError):  # it ended without a word
        found: dict[Path, dict[str, str]] = connection.recv()
        return found
    how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    text = f"its process ended with {how}, without a word; a signal 9 that nobody sent is the system out of memory"
    return {folder: {"kind": "ProcessEnded", "error": text} for folder in task.runs}


def _process(task: Task, answer: Connection) -> None:
    """The process of a task: everything that it prints goes into the log."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    task.log.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(task.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(task.folder)
    answer.send(perform(task))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)  # nobody would hear of what becomes of this; what is unfinished is begun anew


def perform(task: Task) -> dict[Path, dict[str, str]]:
    """Do a task in this process; returns what failed, ``{run directory: {"kind", "error"}}``."""
    failures = {}
    for folder, plain in task.runs.items():
        try:
            _perform(task, folder, plain)
        except Exception as error:
            traceback.print_exc()
            failures[folder] = {"kind": type(error).__name__, "error": _told(error)}
    return failures


def _perform(task: Task, folder: Path, plain: dict[str, Any]) -> None:
    from recdistill_core.registry import installed
    from recdistill_pipeline.plan import make_plan
    from recdistill_pipeline.run import Run

    def say(line: str) -> None:
        print(line, flush=True)

    run = Run(make_plan(plain, installed()), folder, installed(), say)
    if task.kind == "check":
        run.dataset()
    elif task.kind == "teacher":
        run.teachers([task.seed])
    elif task.kind == "raw":
        run.raw_student(task.label, task.seed)
    else:
        run.all()


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, RecdistillError) else f"{type(error).__name__}: {error}"
