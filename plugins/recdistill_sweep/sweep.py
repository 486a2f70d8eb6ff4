"""The order of a sweep: check every run on its data, make what runs share, do the runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from recdistill_core.engine import Engine
from recdistill_core.errors import UsageError
from recdistill_core.fingerprint import digest
from recdistill_pipeline.shared import raw_settings, teacher_settings
from recdistill_sweep.planned import LOGS, Planned
from recdistill_sweep.state import SweepState
from recdistill_sweep.tasks import Isolated, Outcome, Task, in_processes

#: A shared part: the task that makes it, and the runs that need it.
Part = tuple[Task, list[Planned]]


class Sweep:
    """Does the runs of a sweep that are not finished.

    Args:
        planned: the runs. out: the sweep's folder. state: told what becomes of them.
        workers: processes at a time on this machine. engine: instead of them, what hands tasks to processes elsewhere.
        say: told what happens, a line at a time.
    """

    def __init__(
        self,
        planned: Sequence[Planned],
        out: Path,
        state: SweepState,
        workers: int = 1,
        engine: Engine | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        if workers < 1:
            raise UsageError(f"workers must be >= 1, got {workers}", where="--workers")
        self.planned, self.out, self.state = planned, out, state
        self.workers, self.engine, self.say = workers, engine, say

    def all(self) -> None:
        """Do what is left; the state says what became of each run."""
        self.state.save()
        self._do((task, entries) for task, entries in checks(self._open(), self.out))
        parts = shared_parts(self._open(), self.out)
        if parts:
            self.say(f"runs to do: {len(self._open())}; before them, teachers and raw students: {len(parts)}")
        self._do(parts)
        self._do((run_task(entry, self.out), [entry]) for entry in self._open())

    def _open(self) -> list[Planned]:
        """Runs that are neither finished nor failed."""
        names = set(self.state.names("pending", "running"))
        return [entry for entry in self.planned if entry.name in names]

    def _do(self, parts: Iterable[Part]) -> None:
        """Do tasks; a run fails with the first of its tasks that does."""
        parts = list(parts)
        left = len(parts)
        with closing(self._outcomes([task for task, _ in parts])) as outcomes:
            for place, outcome in outcomes:
                left -= 1
                task, entries = parts[place]
                self._note(task, entries, outcome, left)

    def _outcomes(self, tasks: Sequence[Task]) -> Any:
        if self.engine is not None:
            return self.engine.run(Isolated(), tasks)
        return in_processes(tasks, self.workers, self._started)

    def _started(self, task: Task) -> None:
        if task.kind == "run":
            (folder,) = task.runs
            self.state.set(folder.name, "running")
        if task.kind != "check":
            self.say(f"started {task.title}")

    def _note(self, task: Task, entries: Sequence[Planned], outcome: Outcome, left: int) -> None:
        end = f"{outcome.seconds:,.0f} s; {left} left"
        for folder, failure in outcome.failures.items():
            # a shared part stands in the folder of one run, and is missed by all that need it
            hit = entries if task.kind in ("teacher", "raw") else [e for e in entries if e.folder == folder]
            for entry in hit:
                self.state.set(entry.name, "failed", error={**failure, "task": task.title}, log=self._log(task))
            names = f" (for {len(hit)} runs)" if len(hit) > 1 else ""
            what = task.title if task.kind != "check" else f"run {folder.name}"
            self.say(f"failed {what}{names}: {failure['error'].partition(chr(10))[0]}; {end}")
        if task.kind == "run" and not outcome.failures:
            self.state.finish(entries[0], outcome.seconds)
        if task.kind != "check" and not outcome.failures:
            self.say(f"finished {task.title} in {end}")

    def _log(self, task: Task) -> str:
        return str(task.log.relative_to(self.out.resolve()))


def checks(entries: Sequence[Planned], out: Path) -> Iterator[Part]:
    """A task per dataset: import it where need be, and see whether every run of it is wired up."""
    groups: dict[str, list[Planned]] = {}
    for entry in entries:
        groups.setdefault(digest(entry.plan.resolved()["dataset"]), []).append(entry)
    for key, group in groups.items():
        yield Task("check", "check", _log_of(out, f"check-{key}"), _runs(group)), group


def shared_parts(entries: Sequence[Planned], out: Path) -> list[Part]:
    """A task per teacher and seed, then one per raw student and seed; the first run that needs it makes it."""
    teachers: dict[str, tuple[Planned, int, list[Planned]]] = {}
    raws: dict[str, tuple[Planned, str, int, list[Planned]]] = {}
    for entry in entries:
        folder = entry.plan.config.shared
        own = digest([folder, teacher_settings(entry.plan)]) if entry.plan.config.labels.own else ""
        for seed in entry.plan.config.seeds:
            if own:
                teachers.setdefault(f"{own}-{seed}", (entry, seed, []))[2].append(entry)
            for label in entry.plan.students:
                raw = digest([folder, raw_settings(entry.plan, label)])
                raws.setdefault(f"{raw}-{seed}", (entry, label, seed, []))[3].append(entry)
    found = []
    for first, seed, users in teachers.values():
        if not all(_made(first, f"seed-{seed}/{step}") for step in first.plan.of_teachers()):
            title = f"teacher {first.plan.teacher.name} of {first.name}, seed {seed}"
            task = Task(title, "teacher", _log_of(out, f"{first.name}-teacher-{seed}"), _runs([first]), seed)
            found.append((task, users))
    for first, label, seed, users in raws.values():
        if not _made(first, f"seed-{seed}/{label}-raw"):
            title = f"raw student {label} of {first.name}, seed {seed}"
            log = _log_of(out, f"{first.name}-{label}-raw-{seed}")
            found.append((Task(title, "raw", log, _runs([first]), seed, label), users))
    return found


def run_task(entry: Planned, out: Path) -> Task:
    """The task that does all that a run still lacks."""
    return Task(f"run {entry.name}", "run", _log_of(out, entry.name), _runs([entry]))


def _made(entry: Planned, step: str) -> bool:
    return (entry.folder / step / "manifest.json").exists()


def _runs(entries: Sequence[Planned]) -> dict[Path, dict[str, Any]]:
    return {entry.folder: entry.plan.resolved() for entry in entries}


def _log_of(out: Path, name: str) -> Path:
    return out.resolve() / LOGS / f"{name}.log"


def left_over(state: SweepState) -> Mapping[str, str]:
    """``{run: the error in one line}`` of the runs that failed."""
    return {name: state.runs[name]["error"]["error"].partition("\n")[0] for name in state.names("failed")}
