"""``recdistill plugins check``: the conformance kit without pytest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from recdistill_core.cli import JsonOption, emit, messages
from recdistill_core.errors import UsageError, suggest
from recdistill_core.hookspecs import HOOKS
from recdistill_core.registry import Registered, Registry, installed, same_project

if TYPE_CHECKING:
    from recdistill_core.testing import Outcome

COLOURS = {"passed": "green", "failed": "red", "expected failure": "yellow", "not applicable": "dim"}


def check(
    name: Annotated[str, typer.Argument(help="A component, DISTRIBUTION:COMPONENT, or a distribution.")],
    kind: Annotated[str, typer.Option(help=f"One of: {', '.join(HOOKS)}.")] = "",
    json: JsonOption = False,
) -> None:
    """Run the conformance kit on installed components. Exit code 4 if a check fails."""
    from recdistill_core.testing import checks_for, run_check  # needs torch, which --help does not

    entries = _named(name, kind, installed())
    todo = [(entry, check) for entry in entries for check in checks_for(entry)]
    steps = track(todo, description="checking", console=messages(), transient=True)
    found = [(entry, run_check(entry, check)) for entry, check in steps]
    rows = [_plain(entry, outcome) for entry, outcome in found]
    failed = sum(row["status"] == "failed" for row in rows)

    def render(console: Console) -> None:
        titles = [f"{row['kind']} {row['component']}" for row in rows]
        for title, row in zip(titles, rows, strict=True):
            if row is rows[titles.index(title)]:
                console.print(f"[bold]{escape(title)}[/bold]")
            colour = COLOURS[row["status"]]
            console.print(f"  [{colour}]{row['status']}[/{colour}] {row['check']}", highlight=False, soft_wrap=True)
            for line in row["detail"].splitlines():
                console.print(f"    {line}", markup=False, highlight=False, soft_wrap=True)
        console.print(f"{len(rows)} checks, {failed} failed", highlight=False)

    emit({"ok": not failed, "checks": rows}, json, render)
    if failed:
        raise typer.Exit(4)


def _named(name: str, kind: str, registry: Registry) -> Sequence[Registered]:
    if kind and kind not in HOOKS:
        raise UsageError(f"unknown kind {kind!r}{suggest(kind, HOOKS)}", fix=f"use one of: {', '.join(HOOKS)}")
    if kind:
        return [registry.get(kind, name)]
    found = [entry for entry in registry.found if entry.answers_to(name)]
    if found:
        return found
    if any(same_project(record.distribution, name) for record in registry.plugins):
        from recdistill_core.testing import entries_of

        return entries_of(name, registry)
    raise registry.unknown("component", name, registry.found)


def _plain(entry: Registered, outcome: Outcome) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "component": entry.qualified,
        "check": outcome.check.name,
        "proves": outcome.check.summary,
        "status": outcome.status,
        "detail": outcome.detail,
    }
