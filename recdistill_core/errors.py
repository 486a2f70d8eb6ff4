"""Every exception of recdistill. Each one says what is wrong, where, and what to do about it.

The exit codes are part of the command line's contract: 0 ok, 2 usage, 3 bad data, 4 plugin, 5 integrity.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def _again(kind: type[RecdistillError], args: tuple[Any, ...], state: Mapping[str, Any]) -> RecdistillError:
    """An error as it was pickled; its ``__init__`` has put the parts together already."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class RecdistillError(Exception):
    """Base of every error that a user can mend. It survives pickling, so it may be raised in another process.

    Args:
        what: the fault, in one sentence.
        where: the file, row, column, YAML path or object at fault.
        fix: what to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        lines = [what]
        if where:
            lines.append(f"  where: {where}")
        if fix:
            lines.append(f"  to do: {fix}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args, self.__dict__)


class UsageError(RecdistillError):
    """The command or call was used wrongly."""

    exit_code = 2


class ConfigError(UsageError):
    """One or more faults in a configuration, all reported at once.

    Args:
        problems: the faults, in the order found.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = "the configuration has a fault" if count == 1 else f"the configuration has {count} faults"
        body = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"{head}:\n{body}")


class Problem(str):
    """One fault of a configuration: ``path: message``."""

    path: str
    message: str

    def __new__(cls, path: str, message: str) -> Problem:
        """``path`` is the YAML path, or empty for the whole configuration."""
        self = super().__new__(cls, f"{path}: {message}" if path else message)
        self.path, self.message = path, message
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.message)


class WiringError(UsageError):
    """A component needs what the others do not give; found before step 0."""


class DataError(RecdistillError):
    """A log, a dataset or a batch holds what it must not hold."""

    exit_code = 3


class PluginError(RecdistillError):
    """A plugin or a component of it cannot be used."""

    exit_code = 4


class IntegrityError(RecdistillError):
    """What is on disk is not what was written, or would stop being so."""

    exit_code = 5


class LeakError(IntegrityError):
    """A label would reach the logit that is later distilled."""


def suggest(word: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the nearest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
