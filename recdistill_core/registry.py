"""Finds plugins, attributes each to its distribution, and keeps a broken one from hurting the rest.

pluggy's own loader stops at the first plugin that raises and lets a mistyped hook pass, so entry points are walked here
one by one and every hook is checked as soon as its plugin is registered.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pluggy

from recdistill_core import hookspecs
from recdistill_core.component import RECDISTILL_API, Command, Component
from recdistill_core.errors import PluginError, suggest

GROUP = "recdistill"
#: Verbs of the shell itself, which no plugin may replace.
SHELL_VERBS = ("plugins", "doctor")


@dataclass(frozen=True)
class PluginRecord:
    """One entry point and what became of it.

    Attributes:
        name: entry-point name. distribution, version: the installed project that ships it.
        error: why it failed, or None; a failed plugin offers nothing.
    """

    name: str
    distribution: str
    version: str
    error: BaseException | None = None

    @property
    def status(self) -> str:
        """``ok`` or ``failed``."""
        return "failed" if self.error else "ok"

    @property
    def reason(self) -> str:
        """Why it failed, on one line, or an empty string."""
        if self.error is None:
            return ""
        text = " ".join(str(self.error).split()) or "no message"
        return text if isinstance(self.error, PluginError) else f"{type(self.error).__name__}: {text}"


@dataclass(frozen=True)
class Registered:
    """A component and the plugin that registered it."""

    kind: str
    component: Component
    plugin: PluginRecord

    @property
    def qualified(self) -> str:
        """``distribution:name``, unique where the bare name is not."""
        return f"{self.plugin.distribution}:{self.component.name}"


@dataclass(frozen=True)
class Registry:
    """Everything that is installed.

    Attributes:
        plugins: all entry points, failed ones included.
        found: all components of all kinds.
        commands: all verbs with the plugin each comes from.
    """

    plugins: tuple[PluginRecord, ...]
    found: tuple[Registered, ...]
    commands: tuple[tuple[Command, PluginRecord], ...] = field(default=())

    def components(self, kind: str) -> tuple[Registered, ...]:
        """Components of one kind, by name."""
        return tuple(sorted((entry for entry in self.found if entry.kind == kind), key=lambda e: e.qualified))

    def get(self, kind: str, name: str) -> Registered:
        """The component ``name`` or ``distribution:name``.

        Raises:
            PluginError: if there is none, chained to the failure of a plugin that may have had it; or if two
                distributions register the name.
        """
        entries = self.components(kind)
        matches = [entry for entry in entries if name in (entry.component.name, entry.qualified)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise PluginError(
                f"{kind} {name!r} is registered by {len(matches)} distributions",
                where=", ".join(entry.plugin.distribution for entry in matches),
                fix=f"write {' or '.join(repr(entry.qualified) for entry in matches)}",
            )
        raise self.unknown(kind, name, entries)

    def unknown(self, kind: str, name: str, entries: Sequence[Registered]) -> PluginError:
        """The error for a ``name`` that is not among ``entries``, chained to a plugin that failed and may hold it."""
        names = list(dict.fromkeys(entry.component.name for entry in entries))
        failed = sorted((p for p in self.plugins if p.error), key=lambda p: name not in f"{p.name} {p.distribution}")
        broken = "; ".join(f"{p.name} ({p.distribution} {p.version}): {p.reason}" for p in failed)
        error = PluginError(
            f"no {kind} is named {name!r}{suggest(name, names)}",
            where=f"failed plugins, one of which may hold it: {broken}" if broken else None,
            fix=f"use one of: {', '.join(names) or 'none installed'}; or install the plugin that has it",
        )
        error.__cause__ = failed[0].error if failed else None
        return error


def discover(entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> Registry:
    """Load every plugin of the ``recdistill`` entry-point group.

    Args:
        entry_points: instead of the installed ones, for tests.
    """
    if entry_points is None:
        entry_points = importlib.metadata.entry_points(group=GROUP)
    plugins: list[PluginRecord] = []
    found: list[Registered] = []
    commands: list[tuple[Command, PluginRecord]] = []
    for point in sorted(entry_points, key=lambda p: (_distribution(p), p.name)):
        record = PluginRecord(point.name, _distribution(point), _version(point))
        try:
            offered, verbs = _load(point)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may raise anything, SystemExit included
            record = PluginRecord(record.name, record.distribution, record.version, error)
            offered, verbs = [], []
        plugins.append(record)
        found.extend(Registered(kind, component, record) for kind, component in offered)
        commands.extend((verb, record) for verb in verbs)
    return Registry(tuple(plugins), tuple(found), tuple(commands))


@functools.cache
def installed() -> Registry:
    """The registry of this process, made on first use."""
    return discover()


def _load(point: importlib.metadata.EntryPoint) -> tuple[list[tuple[str, Component]], list[Command]]:
    """Import one plugin alone, check its hooks and collect what it offers."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    plugin = point.load()
    manager.register(plugin, name=point.name)
    known = [*hookspecs.HOOKS.values(), hookspecs.COMMAND_HOOK]
    for name in dir(plugin):
        marked = manager.parse_hookimpl_opts(plugin, name)
        if marked and name not in known:
            raise PluginError(
                f"unknown hook {name!r}{suggest(name, known)}", where=point.value, fix=f"hooks are: {', '.join(known)}"
            )
        if not marked and name in known and inspect.isroutine(getattr(plugin, name)):
            raise PluginError(
                f"function {name!r} is named like a hook but not marked as one",
                where=point.value,
                fix="mark it with @recdistill_core.hookimpl, or give it another name",
            )
    if not manager.get_hookcallers(plugin):
        raise PluginError(
            "the plugin implements no hook",
            where=point.value,
            fix="mark a hook function with @recdistill_core.hookimpl",
        )
    offered = [
        (kind, _checked(entry, hook, Component))
        for kind, hook in hookspecs.HOOKS.items()
        for entry in _call(manager, hook)
    ]
    for _, component in offered:
        if component.api_version != RECDISTILL_API:
            raise PluginError(
                f"component {component.name!r} was written for plugin API {component.api_version}, "
                f"this is API {RECDISTILL_API}",
                where=point.value,
                fix="install a release of the plugin that matches this recdistill",
            )
    names = [(kind, component.name) for kind, component in offered]
    for kind, name in names:
        if names.count((kind, name)) > 1:
            raise PluginError(f"the plugin registers {kind} {name!r} more than once", where=point.value)
    hook = hookspecs.COMMAND_HOOK
    verbs: list[Command] = [_checked(entry, hook, Command) for entry in _call(manager, hook)]
    for verb in verbs:
        if verb.name in SHELL_VERBS:
            raise PluginError(
                f"command {verb.name!r} belongs to the shell", where=point.value, fix="give the command another name"
            )
    return offered, verbs


def _call(manager: pluggy.PluginManager, hook: str) -> list[Any]:
    caller = getattr(manager.hook, hook)
    if not caller.get_hookimpls():
        return []
    answers = caller()
    if len(answers) != 1 or not isinstance(answers[0], Iterable):
        got = type(answers[0]).__name__ if answers else "None"
        raise PluginError(f"hook {hook!r} returned {got}, not a list", fix="return a list, even of one entry")
    return list(answers[0])


def _checked(entry: Any, hook: str, kind: type[Any]) -> Any:
    if not isinstance(entry, kind):
        raise PluginError(
            f"hook {hook!r} returned {type(entry).__name__}, not {kind.__name__}",
            fix=f"return a list of recdistill_core.{kind.__name__}",
        )
    return entry


def _distribution(point: importlib.metadata.EntryPoint) -> str:
    return _metadata(point, "name")


def _version(point: importlib.metadata.EntryPoint) -> str:
    return _metadata(point, "version")


def _metadata(point: importlib.metadata.EntryPoint, field: str) -> str:
    try:
        return str(getattr(point.dist, field, None) or "unknown")
    except Exception:  # a torn installation has no METADATA file, and importlib.metadata then raises as it likes
        return "unknown"
