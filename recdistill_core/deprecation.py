"""How public names go: two minor releases of warnings that name the replacement, then removal.

A name deprecated in 0.3 still works in 0.3 and 0.4 and may be removed in 0.5. ``docs/plugins/api-policy.md`` is the
promise; this module keeps it: a removal that comes too early cannot be written down, and a test fails when one is due.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
#: Minor releases for which a deprecated name goes on working.
RELEASES = 2


class RecdistillDeprecationWarning(DeprecationWarning):
    """A public name of recdistill will go; pytest shows it to plugin authors, the command does not to users."""


@dataclass(frozen=True)
class Deprecation:
    """One name that will go.

    Attributes:
        name: what is deprecated, as a user writes it (``recdistill_core.make(spec=...)``).
        since: the release that deprecates it, ``MAJOR.MINOR``. removed_in: the first release without it.
        instead: what to write instead.
    """

    name: str
    since: str
    removed_in: str
    instead: str

    def __post_init__(self) -> None:
        if not self.instead.strip():
            raise ValueError(f"the deprecation of {self.name} must name a replacement")
        since, removed = _release(self.since), _release(self.removed_in)
        if removed[0] == since[0] and removed[1] < since[1] + RELEASES:
            raise ValueError(
                f"{self.name} is deprecated in {self.since} and must live for {RELEASES} minor releases: "
                f"remove it in {since[0]}.{since[1] + RELEASES} or later, not in {self.removed_in}"
            )

    @property
    def message(self) -> str:
        """What the warning says."""
        return (
            f"{self.name} is deprecated since recdistill {self.since} and will be removed in {self.removed_in}: "
            f"use {self.instead}"
        )

    def due(self, version: str) -> bool:
        """Whether release ``version`` must no longer have it."""
        return _release(version) >= _release(self.removed_in)

    def warn(self, stacklevel: int = 2) -> None:
        """Warn the caller of the function that calls this one."""
        warnings.warn(self.message, RecdistillDeprecationWarning, stacklevel=stacklevel + 1)


#: Everything that is deprecated now; filled where the names are defined.
DEPRECATIONS: list[Deprecation] = []


def deprecate(name: str, *, since: str, removed_in: str, instead: str) -> Deprecation:
    """Write down a deprecation; call ``.warn()`` on it where the old argument, key or attribute is used."""
    made = Deprecation(name, since, removed_in, instead)
    DEPRECATIONS.append(made)
    return made


def deprecated(name: str, *, since: str, removed_in: str, instead: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a function: every call warns and then does what it always did."""
    entry = deprecate(name, since=since, removed_in=removed_in, instead=instead)

    def mark(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            entry.warn()
            return function(*args, **kwargs)

        return call

    return mark


def _release(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
