"""The verb itself. Results go to stdout, drawn or as one JSON document; an error of recdistill sets the exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from recdistill_core import installed, make
from recdistill_core.cli import JsonOption, emit
from recdistill_core.errors import UsageError
from recdistill_core.interfaces import LogitStore
from rich.console import Console
from rich.table import Table


def label_versions(
    path: Annotated[Path, typer.Argument(help="Folder of a label store.", metavar="STORE")],
    store: Annotated[str, typer.Option(help="Name of the store component that reads it.")] = "parquet",
    json: JsonOption = False,
) -> None:
    """List the teacher versions of a label store, oldest first."""
    if not path.is_dir():
        raise UsageError("there is no such folder", where=str(path), fix="name the folder 'labels' of a run")
    labels: LogitStore = make(installed(), "store", {"name": store, "path": str(path)})
    rows = [
        {"version": entry.version, "mode": entry.mode.value, "tasks": list(entry.tasks), "labels": entry.count}
        for entry in labels.versions()
    ]

    def render(console: Console) -> None:
        table = Table("version", "mode", "tasks", "labels")
        for entry in labels.versions():
            table.add_row(entry.version, entry.mode.value, ", ".join(entry.tasks), f"{entry.count:,}")
        console.print(table)

    emit(rows, json, render)
