"""The verbs of the shell itself: what is installed, and is this machine fit for it."""

from __future__ import annotations

import re
from traceback import format_exception
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recdistill_core.console import JsonOption, emit, messages
from recdistill_core.errors import UsageError, suggest
from recdistill_core.hookspecs import HOOKS
from recdistill_core.registry import PluginRecord, Registered, Registry, installed


def _plain(record: PluginRecord, registry: Registry) -> dict[str, Any]:
    return {
        "name": record.name,
        "distribution": record.distribution,
        "version": record.version,
        "status": record.status,
        "reason": record.reason,
        "components": [
            {
                "kind": entry.kind,
                "name": entry.component.name,
                "summary": entry.component.summary,
                "also_in": list(registry.rivals(entry)),
            }
            for entry in registry.found
            if entry.plugin is record
        ],
        "commands": [command.name for command, owner in registry.commands if owner is record],
    }


plugins_app = typer.Typer(help="What is installed.", no_args_is_help=True)


@plugins_app.command("list")
def plugins_list(
    json: JsonOption = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Print where each failed plugin failed.")] = False,
) -> None:
    """List every plugin, what it offers, and why a failed one failed."""
    registry = installed()
    for record in registry.plugins if traceback else ():
        if record.error is not None:
            messages().print(f"plugin {record.label}", style="red", markup=False, highlight=False)
            messages().print("".join(format_exception(record.error)), markup=False, highlight=False, soft_wrap=True)
    rows = [_plain(record, registry) for record in registry.plugins]

    def render(console: Console) -> None:
        table = Table("plugin", "distribution", "status", "offers")
        for column in table.columns:
            column.overflow = "fold"  # what is to be copied must not be cut off
        for row in rows:
            offers = [_offer(component, row["distribution"]) for component in row["components"]]
            offers += [f"command [bold]{name}[/bold]" for name in row["commands"]]
            status = {"ok": "ok", "off": "off: ", "failed": "[red]failed[/red]: "}[row["status"]] + escape(
                row["reason"]
            )
            table.add_row(row["name"], f"{row['distribution']} {row['version']}", status, ", ".join(offers))
        console.print(table)

    emit(rows, json, render)


def _offer(component: dict[str, Any], distribution: str) -> str:
    text = f"{component['kind']} [bold]{component['name']}[/bold]"
    if component["also_in"]:
        others = ", ".join(component["also_in"])
        text += f" [red](also in {others}: write {distribution}:{component['name']})[/red]"
    return text


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
    kinds = [kind] if kind else [k for k in HOOKS if any(e.answers_to(name) for e in registry.components(k))]
    if not kinds:
        raise registry.unknown("component", name, registry.found)
    rows = [_describe(registry.get(k, name)) for k in kinds]

    def render(console: Console) -> None:
        for row in rows:
            console.print(f"[bold]{row['kind']} {row['name']}[/bold] — {escape(row['summary'])}")
            console.print(f"from {row['distribution']} {row['version']}, plugin API {row['api_version']}")
            if row["needs"]:
                console.print(f"needs {', '.join(row['needs'])}", markup=False)
            table = Table("setting", "type", "default", "meaning")
            for setting in row["settings"]:
                table.add_row(*(escape(str(setting[key])) for key in ("name", "type", "default", "meaning")))
            console.print(table)
            for check, reason in row["expected_failures"].items():
                console.print(f"fails the check {check} by design: {reason}", markup=False)

    emit(rows, json, render)


def meanings(config: type[Any]) -> dict[str, str]:
    """Field -> what ``Attributes`` in the docstring says of it, its bases' too; several fields may share a line."""
    found: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        section = (cls.__doc__ or "").partition("Attributes:")[2]
        names = "|".join(re.escape(name) for name in getattr(cls, "__dataclass_fields__", ()))
        if section and names:
            parts = re.split(rf"(?:^|(?<=\s))((?:{names})(?:, (?:{names}))*): ", section)
            told = zip(parts[1::2], parts[2::2], strict=True)
            found |= {name: " ".join(text.split()) for head, text in told for name in head.split(", ")}
    return found


def _describe(entry: Registered) -> dict[str, Any]:
    from dataclasses import MISSING, fields

    component = entry.component
    settings, told = [], meanings(component.config)
    for setting in fields(component.config):
        default = setting.default if setting.default is not MISSING else setting.default_factory
        shown = "required" if default is MISSING else default() if callable(default) else default
        settings.append(
            {
                "name": setting.name,
                "type": setting.type.__name__ if isinstance(setting.type, type) else str(setting.type),
                "default": shown,
                "meaning": told.get(setting.name, ""),
            }
        )
    return {
        "kind": entry.kind,
        "name": component.name,
        "summary": component.summary,
        "distribution": entry.plugin.distribution,
        "version": entry.plugin.version,
        "api_version": component.api_version,
        "needs": ["(depends on its settings)"] if callable(component.needs) else sorted(component.needs),
        "example": None if callable(component.example) else dict(component.example),
        "expected_failures": dict(component.expected_failures),
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
