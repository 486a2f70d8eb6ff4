"""``recdistill plugins new KIND NAME``."""

from __future__ import annotations

import importlib.util
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from recdistill_authoring.scaffold import KINDS, Scaffold
from recdistill_core.cli import JsonOption, emit
from recdistill_core.errors import UsageError
from recdistill_core.loading import SHELL_VERBS
from recdistill_core.registry import Registry, installed


def new(
    kind: Annotated[str, typer.Argument(help=f"One of: {', '.join(KINDS)}.", metavar="KIND")],
    name: Annotated[str, typer.Argument(help="Name for YAML: letters, digits, '_' and '-'.", metavar="NAME")],
    into: Annotated[Path, typer.Option("--dir", help="Folder in which recdistill-NAME is made.")] = Path(),
    json: JsonOption = False,
) -> None:
    """Make a plugin package: a working component, its tests, a run and a script that use it."""
    scaffold = Scaffold(kind, name)
    refuse_taken(scaffold, installed())
    home = scaffold.write(into)
    steps = [
        f"cd {shlex.quote(str(home))}",
        "pip install -e '.[test]'",
        "pytest",
        "recdistill run run.yaml --out runs/first",
    ]
    answer = {
        "folder": str(home),
        "kind": kind,
        "name": name,
        "distribution": scaffold.distribution,
        "package": scaffold.package,
        "files": list(scaffold.files()),
        "next": steps,
    }

    def render(console: Console) -> None:
        console.print(f"made the {kind} {name} in {home}", markup=False, highlight=False, soft_wrap=True)
        console.print(
            "next:\n" + "\n".join(f"  {step}" for step in steps), markup=False, highlight=False, soft_wrap=True
        )
        module = f"src/{scaffold.package}/{kind}.py"
        console.print(f"then make it yours: {module} does the work", markup=False, highlight=False, soft_wrap=True)

    emit(answer, json, render)


def refuse_taken(scaffold: Scaffold, registry: Registry) -> None:
    """Raise UsageError where an installed component, verb or package has the name already.

    What an earlier version of the very same plugin has installed does not count.
    """
    name, kind = scaffold.name, scaffold.kind
    if kind == "command":
        owners = [owner for command, owner in registry.commands if command.name.split(" ")[0] == name]
    else:
        owners = [entry.plugin for entry in registry.components(kind) if entry.component.name == name]
    wheres = [f"plugin {owner.label}" for owner in owners if owner.distribution != scaffold.distribution]
    if kind == "command" and name in SHELL_VERBS:
        wheres = ["the shell itself"]
    if wheres:
        raise UsageError(f"there is a {kind} {name!r} already", where=wheres[0], fix="choose another name")
    if importlib.util.find_spec(scaffold.package) is not None and not _is_installed(scaffold.distribution):
        raise UsageError(
            f"there is a package {scaffold.package!r} already",
            where="the Python environment of this command",
            fix="choose another name; one of the two packages would hide the other",
        )


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
