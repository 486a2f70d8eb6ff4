"""The command shell. It lists and shows what is installed; every other verb comes from a plugin through a hook.

Exit codes: 0 ok, 1 unexpected, 2 usage, 3 bad data, 4 plugin, 5 integrity. ``--json`` prints one document to stdout;
progress and messages go to stderr.
"""

from __future__ import annotations

import json as jsonlib
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recdistill_core.component import Command
from recdistill_core.errors import PluginError, RecdistillError, UsageError, suggest
from recdistill_core.hookspecs import HOOKS
from recdistill_core.registry import PluginRecord, Registered, Registry, installed

NOTES = "recdistill notes"
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]


def emit(data: Any, as_json: bool, render: Callable[[Console], None]) -> None:
    """Print ``data`` as one JSON document, or whatever ``render`` draws on a console."""
    if as_json:
        sys.stdout.write(jsonlib.dumps(data, indent=2, default=str, allow_nan=False) + "\n")
    else:
        render(Console())


def messages() -> Console:
    """The console for progress and messages: stderr, so that stdout holds results alone."""
    return Console(stderr=True)


def _plain(record: PluginRecord, registry: Registry) -> dict[str, Any]:
    return {
        "name": record.name,
        "distribution": record.distribution,
        "version": record.version,
        "status": record.status,
        "reason": record.reason,
        "components": [
            {"kind": entry.kind, "name": entry.component.name, "summary": entry.component.summary}
            for entry in registry.found
            if entry.plugin is record
        ],
        "commands": [command.name for command, owner in registry.commands if owner is record],
    }


plugins_app = typer.Typer(help="What is installed.", no_args_is_help=True)


@plugins_app.command("list")
def plugins_list(json: JsonOption = False) -> None:
    """List every plugin, what it offers, and why a failed one failed."""
    registry = installed()
    rows = [_plain(record, registry) for record in registry.plugins]

    def render(console: Console) -> None:
        table = Table("plugin", "distribution", "status", "offers")
        for row in rows:
            offers = [f"{c['kind']} [bold]{c['name']}[/bold]" for c in row["components"]]
            offers += [f"command [bold]{name}[/bold]" for name in row["commands"]]
            status = "ok" if row["status"] == "ok" else f"[red]failed[/red]: {escape(row['reason'])}"
            table.add_row(row["name"], f"{row['distribution']} {row['version']}", status, ", ".join(offers))
        console.print(table)

    emit(rows, json, render)


@plugins_app.command("show")
def plugins_show(
    name: Annotated[str, typer.Argument(help="Component name, or DISTRIBUTION:NAME.")],
    kind: Annotated[str, typer.Option(help=f"One of: {', '.join(HOOKS)}.")] = "",
    json: JsonOption = False,
) -> None:
    """Show one component: where it comes from, what it needs, its settings and their defaults."""
    registry = installed()
    if kind and kind not in HOOKS:
        raise UsageError(f"unknown kind {kind!r}{suggest(kind, HOOKS)}", fix=f"use one of: {', '.join(HOOKS)}")
    kinds = [kind] if kind else [k for k in HOOKS if any(_named(e, name) for e in registry.components(k))]
    if not kinds:
        raise registry.unknown("component", name, registry.found)
    rows = [_describe(registry.get(k, name)) for k in kinds]

    def render(console: Console) -> None:
        for row in rows:
            console.print(f"[bold]{row['kind']} {row['name']}[/bold] — {escape(row['summary'])}")
            console.print(f"from {row['distribution']} {row['version']}, plugin API {row['api_version']}")
            table = Table("setting", "type", "default")
            for setting in row["settings"]:
                table.add_row(setting["name"], escape(setting["type"]), escape(str(setting["default"])))
            console.print(table)

    emit(rows, json, render)


def _named(entry: Registered, name: str) -> bool:
    return name in (entry.component.name, entry.qualified)


def _describe(entry: Registered) -> dict[str, Any]:
    from dataclasses import MISSING, fields

    component = entry.component
    settings = []
    for setting in fields(component.config):
        default = setting.default if setting.default is not MISSING else setting.default_factory
        shown = "required" if default is MISSING else default() if callable(default) else default
        settings.append(
            {
                "name": setting.name,
                "type": setting.type.__name__ if isinstance(setting.type, type) else str(setting.type),
                "default": shown,
            }
        )
    return {
        "kind": entry.kind,
        "name": component.name,
        "summary": component.summary,
        "distribution": entry.plugin.distribution,
        "version": entry.plugin.version,
        "api_version": component.api_version,
        "example": dict(component.example),
        "settings": settings,
    }


def doctor(json: JsonOption = False) -> None:
    """Check this machine: versions, devices, plugins."""
    from recdistill_core.diagnosis import diagnose

    report = diagnose(installed())

    def render(console: Console) -> None:
        table = Table("check", "state", "detail")
        for row in report["checks"]:
            colour = {"ok": "green", "note": "yellow", "failed": "red"}[row["state"]]
            table.add_row(row["check"], f"[{colour}]{row['state']}[/{colour}]", escape(row["detail"]))
        console.print(table)

    emit(report, json, render)
    if not report["ok"]:
        raise typer.Exit(4)


def build_app(registry: Registry, argv: Sequence[str]) -> typer.Typer:
    """The shell's app. A plugin's verb is imported only when ``argv`` asks for it; otherwise its summary stands in."""
    app = typer.Typer(
        name="recdistill",
        help="Distil a huge recommendation model into one small enough to serve.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.add_typer(plugins_app, name="plugins")
    app.command("doctor")(doctor)
    wanted = next((word for word in argv if not word.startswith("-")), "")
    owners = [owner for command, owner in registry.commands if command.name == wanted]
    if len(owners) > 1:
        raise PluginError(
            f"command {wanted!r} is registered by {len(owners)} plugins",
            where=", ".join(f"{owner.name} of {owner.distribution}" for owner in owners),
            fix="uninstall all but one of them",
        )
    for command, owner in registry.commands:
        _add(app, command, owner, load=command.name == wanted)
    return app


def _add(app: typer.Typer, command: Command, owner: PluginRecord, load: bool) -> None:
    help_text = f"{command.summary} [{owner.distribution}]"
    named: dict[str, Any] = {"name": command.name, "help": help_text, "short_help": help_text}
    if not load:

        def stand_in() -> None:
            raise AssertionError("a verb that is asked for is always loaded")

        app.command(**named)(stand_in)
    elif command.group:
        app.add_typer(_loaded(command, owner), **named)
    else:
        app.command(**named)(_loaded(command, owner))


def _loaded(command: Command, owner: PluginRecord) -> Any:
    try:
        return command.load()
    except Exception as error:
        raise PluginError(
            f"command {command.name!r} cannot be loaded: {type(error).__name__}: {error}",
            where=f"plugin {owner.name!r} of {owner.distribution}",
            fix="mend or reinstall the plugin, or report it to its author",
        ) from error


def main(argv: Sequence[str] | None = None) -> None:
    """Run the shell and exit with the code that belongs to what happened."""
    words = list(sys.argv[1:] if argv is None else argv)
    _show_notes()
    try:
        # typer prints its own usage errors and exits with 2; some releases bring a click of their own, so there is
        # no exception class here that would catch them all
        build_app(installed(), words)(args=words, prog_name="recdistill")
    except KeyboardInterrupt:
        sys.exit(130)
    except RecdistillError as error:
        _report(error, as_json="--json" in words)
        sys.exit(error.exit_code)


def _show_notes() -> None:
    """Print what recdistill and its plugins log (a chosen backend, a doubtful propensity) to stderr."""
    root = logging.getLogger()
    if any(handler.get_name() == NOTES for handler in root.handlers):
        return
    handler = logging.StreamHandler()
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
    console.print(f"error: {error}", style="red", markup=False, highlight=False)
    for text in causes:
        console.print(f"  caused by {text}", markup=False, highlight=False)
