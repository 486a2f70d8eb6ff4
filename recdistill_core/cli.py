"""The command shell. It lists and shows what is installed; every other verb comes from a plugin through a hook.

Exit codes: 0 ok, 1 unexpected, 2 usage, 3 bad data, 4 plugin, 5 integrity. ``--json`` prints one document to stdout;
progress and messages go to stderr.
"""

from __future__ import annotations

import copy
import json as jsonlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, TextIO

import typer

import recdistill_core
from recdistill_core.component import Command
from recdistill_core.console import JsonOption, emit, messages
from recdistill_core.errors import PluginError, RecdistillError, UsageError
from recdistill_core.registry import PluginRecord, Registry, installed
from recdistill_core.selection import Selection
from recdistill_core.shell import doctor, plugins_app

__all__ = ["JsonOption", "build_app", "emit", "main", "messages"]

NOTES = "recdistill notes"
#: A bug in this distribution is no third party's fault: it ends with exit code 1 and its traceback.
OURS = "recdistill"


def build_app(registry: Registry, argv: Sequence[str]) -> typer.Typer:
    """The shell's app. A plugin's verb is imported only when ``argv`` asks for it; otherwise its summary stands in.

    Raises:
        PluginError: if ``argv`` asks for a verb that cannot be loaded, or that more than one plugin registers.
        UsageError: for an unknown verb while plugins are switched off.
    """
    app = typer.Typer(
        name="recdistill",
        help="Distil a huge recommendation model into one small enough to serve.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_options)
    wanted = [word for word in argv if not word.startswith("-")][:2]
    _refuse_twice(registry, wanted)
    tops = {command.name: (command, owner) for command, owner in registry.commands if " " not in command.name}
    inner = [(command, owner) for command, owner in registry.commands if " " in command.name]
    heads = dict.fromkeys(["plugins", *tops, *(command.name.split(" ")[0] for command, _ in inner)])
    off = [owner for owner in registry.plugins if owner.off]
    if wanted and off and wanted[0] not in (*heads, "doctor"):
        raise UsageError(
            f"there is no command {wanted[0]!r}, and {len(off)} plugins that may have it are switched off",
            where="--no-plugin and --only-plugin, or the environment",
            fix="let the plugin load that has it; --only-plugin recdistill lets those load that ship with recdistill",
        )
    for head in heads:
        verbs = [(command, owner) for command, owner in inner if command.name.split(" ")[0] == head]
        if head == "plugins":
            app.add_typer(_extended(plugins_app, verbs, wanted), name=head)
        elif head not in tops:
            app.add_typer(_extended(typer.Typer(no_args_is_help=True), verbs, wanted), name=head, help=_origins(verbs))
        else:
            _add(app, *tops[head], verbs, wanted)
    app.command("doctor")(doctor)
    return app


def _print_version(wanted: bool) -> None:
    """Print the version."""
    if wanted:
        typer.echo(f"recdistill {recdistill_core.__version__}")
        raise typer.Exit


def _options(
    strict_plugins: Annotated[bool, typer.Option("--strict-plugins", help="Fail if any plugin fails to load.")] = False,
    no_plugin: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Do not load this plugin. Repeatable.")
    ] = None,
    only_plugin: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Load only the plugins named so. Repeatable.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print it.")
    ] = False,
) -> None:
    """Distil a huge recommendation model into one small enough to serve."""


def _refuse_twice(registry: Registry, wanted: Sequence[str]) -> None:
    for name in (" ".join(wanted[:1]), " ".join(wanted)):
        owners = [owner for command, owner in registry.commands if command.name == name]
        if len(owners) > 1:
            raise PluginError(
                f"command {name!r} is registered by {len(owners)} plugins",
                where=", ".join(f"{owner.name} of {owner.distribution}" for owner in owners),
                fix="uninstall all but one of them, or switch them off with --no-plugin",
            )


Owned = tuple[Command, PluginRecord]


def _origins(verbs: Sequence[Owned]) -> str:
    return f"Verbs of {', '.join(dict.fromkeys(owner.distribution for _, owner in verbs))}."


def _add(
    app: typer.Typer, command: Command, owner: PluginRecord, verbs: Sequence[Owned], wanted: Sequence[str]
) -> None:
    """Add a verb, or a group with what other plugins add to it."""
    named = _named(command, owner, command.name)
    if not command.group and any(verb.name == " ".join(wanted) for verb, _ in verbs):
        raise PluginError(
            f"command {verbs[0][0].name!r} needs a group {command.name!r}, which is a verb",
            where=f"plugin {verbs[0][1].label}; the verb is of plugin {owner.label}",
            fix="switch one of them off with --no-plugin, or report it to its author",
        )
    if wanted[:1] != [command.name]:
        app.command(**named)(_stand_in)
    elif command.group:
        app.add_typer(_extended(_loaded(command, owner), verbs, wanted), **named)
    else:
        app.command(**named)(_loaded(command, owner))


def _extended(group: typer.Typer, verbs: Sequence[Owned], wanted: Sequence[str]) -> typer.Typer:
    """``group`` with the ``verbs`` that plugins add to it; only the wanted one is imported."""
    made = copy.copy(group)
    made.registered_commands = list(group.registered_commands)
    own = {entry.name or getattr(entry.callback, "__name__", "") for entry in group.registered_commands}
    for command, owner in verbs:
        verb = command.name.split(" ")[1]
        wants_this = " ".join(wanted) == command.name
        if verb in own and not wants_this:
            continue
        if verb in own:
            raise PluginError(
                f"command {command.name!r} is there already",
                where=f"plugin {owner.label} adds it a second time",
                fix="switch that plugin off with --no-plugin, or report it to its author",
            )
        made.command(**_named(command, owner, verb))(_loaded(command, owner) if wants_this else _stand_in)
    return made


def _named(command: Command, owner: PluginRecord, name: str) -> dict[str, Any]:
    help_text = f"{command.summary} [{owner.distribution}]"
    return {"name": name, "help": help_text, "short_help": help_text}


def _stand_in() -> None:
    raise AssertionError("a verb that is asked for is always loaded")


def _loaded(command: Command, owner: PluginRecord) -> Any:
    try:
        return command.load()
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"command {command.name!r} cannot be loaded: {type(error).__name__}: {error}",
            where=f"plugin {owner.label}",
            fix="mend or reinstall the plugin, or report it to its author",
        ) from error


def main(argv: Sequence[str] | None = None) -> None:
    """Run the shell and exit with the code that belongs to what happened."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    _show_notes()
    registry: Registry | None = None
    try:
        rest = _select(words)
        registry = installed()
        # typer prints its own usage errors and exits with 2; some releases bring a click of their own, so there is
        # no exception class here that would catch them all
        build_app(registry, rest)(args=words, prog_name="recdistill")
    except KeyboardInterrupt:
        sys.exit(130)
    except RecdistillError as error:
        _report(error, as_json)
        sys.exit(error.exit_code)
    except Exception as error:
        culprit = registry.culprit(error) if registry else None
        if culprit is None or culprit.distribution == OURS:
            raise
        traceback.print_exc()
        blamed = PluginError(
            f"plugin {culprit.label} failed: {type(error).__name__}: {error}",
            where=f"module {culprit.module}; the traceback above ends in its code",
            fix="report it to the plugin's author, or do without it",
        )
        _report(blamed, as_json)
        sys.exit(blamed.exit_code)


def _select(words: Sequence[str]) -> list[str]:
    """Put the shell's own options, which stand before the verb, into the environment; return what follows them."""
    strict, without, only = False, list[str](), list[str]()
    rest = list(words)
    while rest and rest[0].startswith("-"):
        option, equals, value = rest.pop(0).partition("=")
        if option == "--strict-plugins":
            strict = True
        elif option in ("--no-plugin", "--only-plugin"):
            names = without if option == "--no-plugin" else only
            names += [value] if equals else [rest.pop(0)] if rest else []
    if strict or without or only:
        selection = Selection.from_environment().and_also(strict, without, only)
        os.environ.update(selection.environment())
    return rest


class _Notes(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at the moment: a program that calls the shell may have replaced it since."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _show_notes() -> None:
    """Print what recdistill and its plugins log (a chosen backend, a doubtful propensity) to stderr."""
    root = logging.getLogger()
    if any(handler.get_name() == NOTES for handler in root.handlers):
        return
    handler = _Notes()
    handler.set_name(NOTES)
    handler.addFilter(lambda record: record.name.startswith("recdistill"))
    handler.setFormatter(logging.Formatter("%(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)


def _report(error: RecdistillError, as_json: bool) -> None:
    causes = []
    cause = error.__cause__
    while cause is not None:
        causes.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__
    if as_json:
        plain = {"error": str(error), "kind": type(error).__name__, "exit_code": error.exit_code, "causes": causes}
        sys.stdout.write(jsonlib.dumps(plain, indent=2) + "\n")
        return
    console = messages()
    console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    for text in causes:
        console.print(f"  caused by {text}", markup=False, highlight=False, soft_wrap=True)
