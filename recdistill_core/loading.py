"""Loads one plugin: imports it, checks its hooks, and collects what it offers.

pluggy's own loader stops at the first plugin that raises and lets a mistyped hook pass, so each plugin gets a manager
of its own and every hook is checked as soon as it is registered.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint
from typing import Any

import pluggy

from recdistill_core import hookspecs
from recdistill_core.component import OLDEST_API, RECDISTILL_API, Command, Component
from recdistill_core.errors import PluginError, suggest
from recdistill_core.hookspecs import COMMAND_HOOK

#: Verbs of the shell itself, which no plugin may replace.
SHELL_VERBS = ("plugins", "plugins list", "plugins show", "doctor")


def load_plugin(point: EntryPoint) -> tuple[list[tuple[str, Component]], list[Command]]:
    """Import one plugin alone, check its hooks and collect its ``(kind, component)`` pairs and commands.

    Raises:
        PluginError: for a hook that is unknown, unmarked or wrong, a component of another API version, a name twice.
        BaseException: whatever else the plugin raises.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
        plugin = point.load()
    try:
        manager.register(plugin, name=point.name)
    except pluggy.PluginValidationError as error:
        raise PluginError(
            " ".join(str(error).split()), where=point.value, fix="hooks take no arguments: write def recdistill_...():"
        ) from error
    _check_hooks(manager, plugin, point.value)
    offered = [
        (kind, _checked(entry, hook, Component))
        for kind, hook in hookspecs.HOOKS.items()
        for entry in _call(manager, hook)
    ]
    _check_components(offered, point.value)
    verbs: list[Command] = [_checked(entry, COMMAND_HOOK, Command) for entry in _call(manager, COMMAND_HOOK)]
    for verb in verbs:
        if verb.name in SHELL_VERBS:
            raise PluginError(
                f"command {verb.name!r} belongs to the shell", where=point.value, fix="give the command another name"
            )
    return offered, verbs


def _check_hooks(manager: pluggy.PluginManager, plugin: Any, where: str) -> None:
    known = [*hookspecs.HOOKS.values(), COMMAND_HOOK]
    for name in dir(plugin):
        marked = manager.parse_hookimpl_opts(plugin, name)
        if marked and name not in known:
            raise PluginError(
                f"unknown hook {name!r}{suggest(name, known)}", where=where, fix=f"hooks are: {', '.join(known)}"
            )
        if not marked and name in known and inspect.isroutine(getattr(plugin, name)):
            raise PluginError(
                f"function {name!r} is named like a hook but not marked as one",
                where=where,
                fix="mark it with @recdistill_core.hookimpl, or give it another name",
            )
    if not manager.get_hookcallers(plugin):
        raise PluginError(
            "the plugin implements no hook",
            where=where,
            fix="mark a hook function with @recdistill_core.hookimpl",
        )


def _check_components(offered: Sequence[tuple[str, Component]], where: str) -> None:
    for _, component in offered:
        if not OLDEST_API <= component.api_version <= RECDISTILL_API:
            old = component.api_version < OLDEST_API
            raise PluginError(
                f"component {component.name!r} was written for plugin API {component.api_version}, "
                f"this is API {RECDISTILL_API}",
                where=where,
                fix=f"install a newer release of {'the plugin' if old else 'recdistill'}",
            )
    names = [(kind, component.name) for kind, component in offered]
    for kind, name in names:
        if names.count((kind, name)) > 1:
            raise PluginError(f"the plugin registers {kind} {name!r} more than once", where=where)


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
