"""Finds plugins, attributes each to its distribution, and keeps a broken one from hurting the rest."""

from __future__ import annotations

import functools
import importlib.metadata
import re
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from recdistill_core.component import Command, Component
from recdistill_core.errors import PluginError, suggest
from recdistill_core.loading import load_plugin
from recdistill_core.selection import Selection

GROUP = "recdistill"


@dataclass(frozen=True)
class PluginRecord:
    """One entry point and what became of it.

    Attributes:
        name: entry-point name. distribution, version: the installed project that ships it.
        error: why it failed, or None; a failed plugin offers nothing.
        off: why it was not loaded at all, or an empty string.
        module: the module that the entry point names.
    """

    name: str
    distribution: str
    version: str
    error: BaseException | None = None
    off: str = ""
    module: str = ""

    @property
    def status(self) -> str:
        """``ok``, ``failed`` or ``off``."""
        return "failed" if self.error else "off" if self.off else "ok"

    @property
    def label(self) -> str:
        """``'hinge' (recdistill-hinge 1.2.3)`` for messages."""
        return f"{self.name!r} ({self.distribution} {self.version})"

    @property
    def reason(self) -> str:
        """Why it failed or is off, on one line, or an empty string."""
        if self.error is None:
            return self.off
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

    def answers_to(self, name: str) -> bool:
        """Whether ``name`` is its name, or ``distribution:name``, the distribution compared as pip does."""
        distribution, colon, bare = name.rpartition(":")
        return bare == self.component.name and (not colon or same_project(distribution, self.plugin.distribution))


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
        matches = [entry for entry in entries if entry.answers_to(name)]
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
        absent = [p for p in self.plugins if p.status != "ok"]
        absent.sort(key=lambda p: (name not in f"{p.name} {p.distribution}", p.error is None))
        broken = "; ".join(f"{p.name} ({p.distribution} {p.version}): {p.reason}" for p in absent)
        error = PluginError(
            f"no {kind} is named {name!r}{suggest(name, names)}",
            where=f"plugins that failed or are off, one of which may hold it: {broken}" if broken else None,
            fix=f"use one of: {', '.join(names) or 'none installed'}; or install the plugin that has it",
        )
        error.__cause__ = next((p.error for p in absent if p.error), None)
        return error

    def rivals(self, entry: Registered) -> tuple[str, ...]:
        """Other distributions that register the kind and name of ``entry``, which must then be qualified."""
        return tuple(
            other.plugin.distribution
            for other in self.components(entry.kind)
            if other.component.name == entry.component.name and other.plugin is not entry.plugin
        )

    def culprit(self, error: BaseException) -> PluginRecord | None:
        """The plugin whose code was running nearest to where ``error`` was raised, or None."""
        modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
        for module in reversed(modules):
            shared = {record: _shared_parts(module, record.module) for record in self.plugins}
            nearest = max(shared, key=lambda record: shared[record], default=None)
            if nearest is not None and shared[nearest] > 0:
                return nearest
        return None


def discover(
    entry_points: Iterable[importlib.metadata.EntryPoint] | None = None, selection: Selection | None = None
) -> Registry:
    """Load every plugin of the ``recdistill`` entry-point group.

    Args:
        entry_points: instead of the installed ones, for tests.
        selection: which plugins may load; all where None.

    Raises:
        UsageError: if the selection names a plugin that is not there.
        PluginError: if the selection is strict and a plugin fails.
    """
    selection = selection or Selection()
    if entry_points is None:
        entry_points = importlib.metadata.entry_points(group=GROUP)
    points = sorted(entry_points, key=lambda p: (_distribution(p), p.name))
    selection.check((point.name, _distribution(point)) for point in points)
    plugins: list[PluginRecord] = []
    found: list[Registered] = []
    commands: list[tuple[Command, PluginRecord]] = []
    for point in points:
        record, offered, verbs = _isolated(point, selection, found)
        plugins.append(record)
        found.extend(Registered(kind, component, record) for kind, component in offered)
        commands.extend((verb, record) for verb in verbs)
    if selection.strict:
        _refuse_failures(plugins)
    return Registry(tuple(plugins), tuple(found), tuple(commands))


def installed() -> Registry:
    """The registry of this process, made on first use; :mod:`recdistill_core.selection` says which plugins load."""
    return _installed(Selection.from_environment())


@functools.cache
def _installed(selection: Selection) -> Registry:
    return discover(selection=selection)


def _isolated(
    point: importlib.metadata.EntryPoint, selection: Selection, found: Sequence[Registered]
) -> tuple[PluginRecord, list[tuple[str, Component]], list[Command]]:
    """One plugin's record and what it offers; whatever it raises ends up in the record."""
    record = PluginRecord(point.name, _distribution(point), _version(point), module=point.module)
    off = selection.why_off(record.name, record.distribution)
    if off:
        return replace(record, off=off), [], []
    try:
        offered, verbs = load_plugin(point)
        for kind, component in offered:
            for entry in found:
                if (entry.kind, entry.qualified) == (kind, f"{record.distribution}:{component.name}"):
                    raise PluginError(
                        f"the distribution registers {kind} {component.name!r} more than once",
                        where=f"entry points {entry.plugin.name!r} and {record.name!r} of {record.distribution}",
                        fix="give one of them another name",
                    )
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may raise anything, SystemExit included
        return replace(record, error=error), [], []
    return record, offered, verbs


def _refuse_failures(plugins: Sequence[PluginRecord]) -> None:
    failed = [record for record in plugins if record.error]
    if failed:
        raise PluginError(
            f"{len(failed)} of {len(plugins)} plugins failed to load, and --strict-plugins is on",
            where="; ".join(f"{record.label}: {record.reason}" for record in failed),
            fix="mend or uninstall them, or switch them off with --no-plugin",
        ) from failed[0].error


def same_project(one: str, other: str) -> bool:
    """Whether two names of a distribution are one for pip: case, ``-``, ``_`` and ``.`` do not matter."""
    return re.sub(r"[-_.]+", "-", one).lower() == re.sub(r"[-_.]+", "-", other).lower()


def _shared_parts(module: str, plugin: str) -> int:
    """How many leading parts of two dotted names agree."""
    count = 0
    for mine, theirs in zip(module.split("."), plugin.split("."), strict=False):
        if mine != theirs:
            break
        count += 1
    return count


def _distribution(point: importlib.metadata.EntryPoint) -> str:
    return _metadata(point, "name")


def _version(point: importlib.metadata.EntryPoint) -> str:
    return _metadata(point, "version")


def _metadata(point: importlib.metadata.EntryPoint, field: str) -> str:
    try:
        return str(getattr(point.dist, field, None) or "unknown")
    except Exception:  # a torn installation has no METADATA file, and importlib.metadata then raises as it likes
        return "unknown"
