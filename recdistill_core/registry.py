"""Finds plugins, attributes each to its distribution, and keeps a broken one from hurting the rest.

pluggy's own loader stops at the first plugin that raises and lets a mistyped hook pass, so entry points are walked here
one by one and every hook is checked as soon as its plugin is registered.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pluggy

from recdistill_core import hookspecs
from recdistill_core.component import RECDISTILL_API, Command, Component
from recdistill_core.errors import PluginError, suggest

GROUP = "recdistill"


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
        names = [entry.component.name for entry in entries]
        failed = sorted((p for p in self.plugins if p.error), key=lambda p: name not in f"{p.name} {p.distribution}")
        broken = "; ".join(f"{p.name} ({p.distribution} {p.version}): {p.reason}" for p in failed)
        raise PluginError(
            f"no {kind} is named {name!r}{suggest(name, names)}",
            where=f"failed plugins, one of which may hold it: {broken}" if broken else None,
            fix=f"use one of: {', '.join(names) or 'none installed'}; or install the plugin that has it",
        ) from (failed[0].error if failed else None)


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
        if name.startswith("recdistill_") and manager.parse_hookimpl_opts(plugin, name) and name not in known:
            raise PluginError(
                f"unknown hook {name!r}{suggest(name, known)}", where=point.value, fix=f"hooks are: {', '.join(known)}"
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
    hook = hookspecs.COMMAND_HOOK
    return offered, [_checked(entry, hook, Command) for entry in _call(manager, hook)]


def _call(manager: pluggy.PluginManager, hook: str) -> list[Any]:
    return [entry for answer in getattr(manager.hook, hook)() for entry in answer]


def _checked(entry: Any, hook: str, kind: type[Any]) -> Any:
    if not isinstance(entry, kind):
        raise PluginError(
            f"hook {hook!r} returned {type(entry).__name__}, not {kind.__name__}",
            fix=f"return a list of recdistill_core.{kind.__name__}",
        )
    return entry


def _distribution(point: importlib.metadata.EntryPoint) -> str:
    return point.dist.name if point.dist else "unknown"


def _version(point: importlib.metadata.EntryPoint) -> str:
    return point.dist.version if point.dist else "unknown"
