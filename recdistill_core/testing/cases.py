"""Checks, and what they are run on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch

from recdistill_core.batch import Batch
from recdistill_core.component import BuildContext
from recdistill_core.config import Resolved, fill_or_raise
from recdistill_core.errors import PluginError, suggest
from recdistill_core.registry import Registered
from recdistill_core.schema import Schema
from recdistill_core.testing.samples import sample_batch, sample_schema, windowed


class ConformanceError(AssertionError):
    """A component breaks its contract; the message names the component, the fault and the check."""


class NotApplicable(Exception):
    """A check has nothing to say about this component; the message says why."""


#: Kinds that are built without a schema and without tasks; an exporter is told the tasks alone.
WITHOUT_DATASET = ("metric", "store", "source", "importer", "engine", "sampler")


@dataclass
class Case:
    """One component under test.

    Attributes:
        entry: the component and its plugin.
        folder: an empty folder of this case, for the example's files and whatever the check writes.
        schema: the dataset's schema that the component is built with.
    """

    entry: Registered
    folder: Path
    schema: Schema = field(default_factory=sample_schema)
    _config: Any = None

    @property
    def config(self) -> Any:
        """The component's configuration, filled from its example; the same one at each call."""
        if self._config is None:
            place = self.folder / "example"
            place.mkdir()
            self._config = fill_or_raise(self.entry.component.config, self.entry.component.example_in(place))
        return self._config

    @property
    def context(self) -> BuildContext:
        """What a run tells ``build``: schema and tasks, or nothing to the kinds that are built without a dataset."""
        if self.entry.kind in WITHOUT_DATASET:
            return BuildContext()
        return BuildContext(None if self.entry.kind == "exporter" else self.schema, self.schema.tasks)

    def build(self, seed: int = 0) -> Any:
        """A new object from the example, with torch seeded before."""
        chosen = Resolved(self.entry, self.config)  # before the seed: the example may draw numbers for its files
        torch.manual_seed(seed)
        return chosen.build(self.context)

    def batch(self, made: Any = None, seed: int = 0) -> Batch:
        """The sample batch, with the history that ``made`` asks for; whole histories where it says nothing of them."""
        batch = sample_batch(self.schema, seed=seed)
        return windowed(batch, made.history) if hasattr(made, "history") else batch

    def again(self, name: str, schema: Schema | None = None) -> Case:
        """The same component with a folder of its own, called ``name``, and possibly another schema."""
        folder = self.folder / name
        folder.mkdir()
        return Case(self.entry, folder, schema or self.schema)

    def fail(self, fault: str) -> NoReturn:
        """Raise ConformanceError."""
        __tracebackhide__ = True
        raise ConformanceError(f"{self.entry.kind} {self.entry.component.name!r} {fault}")

    def require(self, holds: bool, fault: str) -> None:
        """Raise ConformanceError with ``fault``, which continues "student 'fm' ...", unless ``holds``."""
        __tracebackhide__ = True
        if not holds:
            self.fail(fault)


@dataclass(frozen=True)
class Check:
    """One thing that must hold.

    Attributes:
        kinds: the kinds of component that it is about; empty: every kind.
        name: what holds, as an identifier.
        summary: what it proves, in one line.
        run: raises ConformanceError unless it holds.
    """

    kinds: tuple[str, ...]
    name: str
    summary: str
    run: Callable[[Case], None]

    def about(self, kind: str) -> bool:
        """Whether components of ``kind`` must pass it."""
        return not self.kinds or kind in self.kinds


#: All checks, in the order in which they are run.
CHECKS: list[Check] = []
#: kind -> ``f(case, made)``: use the component as a run does and return everything it answered.
EXERCISES: dict[str, Callable[[Case, Any], Mapping[str, Any]]] = {}

CheckFunction = Callable[[Case], None]
Exercise = Callable[[Case, Any], Mapping[str, Any]]


def check(*kinds: str) -> Callable[[CheckFunction], CheckFunction]:
    """Register a check for ``kinds``, for every kind where there are none.

    Its name is the function's; its summary is the first line of the docstring.
    """

    def register(run: CheckFunction) -> CheckFunction:
        summary = (run.__doc__ or "").strip().splitlines()[0]
        CHECKS.append(Check(kinds, run.__name__, summary, run))
        return run

    return register


def exercise(kind: str) -> Callable[[Exercise], Exercise]:
    """Register how a component of ``kind`` is used: ``f(case, made) -> {name: tensor or plain value}``."""

    def register(run: Exercise) -> Exercise:
        EXERCISES[kind] = run
        return run

    return register


@dataclass(frozen=True)
class Outcome:
    """What came of one check: ``status`` is ``passed``, ``failed``, ``expected failure`` or ``not applicable``."""

    check: Check
    status: str
    detail: str = ""


def checks_for(entry: Registered) -> list[Check]:
    """The checks that a component must pass.

    Raises:
        PluginError: if the component expects a check to fail that there is not.
    """
    found = [check for check in CHECKS if check.about(entry.kind)]
    names = [check.name for check in found]
    for name in entry.component.expected_failures:
        if name not in names:
            raise PluginError(
                f"{entry.kind} {entry.component.name!r} expects the check {name!r} to fail, which there is not"
                f"{suggest(name, names)}",
                where=f"plugin {entry.plugin.label}",
                fix="take it out of expected_failures, or name one of the checks for this kind",
            )
    return found


#: The check that reports a component that cannot be built, so that the others need not.
BUILDS = "it_builds_from_its_example"


def run_in_a_folder(entry: Registered, check: Check) -> None:
    """Run one check in a temporary folder.

    Raises:
        NotApplicable: for any other check than :data:`BUILDS` of a component that cannot be built.
        Exception: what the check raised, ConformanceError or another.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="recdistill-") as folder:
            check.run(Case(entry, Path(folder)))
    except (NotApplicable, ConformanceError):
        raise
    except Exception:
        if check.name != BUILDS and not _builds(entry):
            raise NotApplicable(f"it cannot be built, as the check {BUILDS} reports") from None
        raise


def _builds(entry: Registered) -> bool:
    try:
        with tempfile.TemporaryDirectory(prefix="recdistill-") as folder:
            Case(entry, Path(folder)).build()
    except Exception:
        return False
    return True


def run_check(entry: Registered, check: Check) -> Outcome:
    """Run one check; an exception other than ConformanceError is a failure too."""
    reason = entry.component.expected_failures.get(check.name, "")
    try:
        run_in_a_folder(entry, check)
    except NotApplicable as why:
        return Outcome(check, "not applicable", str(why))
    except Exception as error:
        plain = isinstance(error, ConformanceError)
        detail = str(error) if plain else f"raised {type(error).__name__}: {error}"
        return Outcome(check, "expected failure" if reason else "failed", reason or detail)
    if reason:
        return Outcome(check, "failed", f"was expected to fail ({reason}) and passed: take it out of expected_failures")
    return Outcome(check, "passed")
