"""``labels pin``, ``unpin`` and ``pins``: snapshots whose files are kept."""

from __future__ import annotations

import getpass
import socket
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recdistill_core.cli import JsonOption, emit
from recdistill_labels.arguments import SnapshotOption, StoreArgument, iso, open_store

NameArgument = Annotated[str, typer.Argument(help="Name of the pin, such as the run that needs it.", metavar="NAME")]


def pin(
    store: StoreArgument,
    name: NameArgument,
    snapshot: SnapshotOption = "",
    by: Annotated[str, typer.Option("--by", help="Who wants it; USER@HOST where absent.")] = "",
    json: JsonOption = False,
) -> None:
    """Keep a snapshot, whatever is compacted and collected later."""

    made = open_store(store, snapshot=snapshot).pin(name, by or _who())
    emit(
        asdict(made),
        json,
        lambda console: console.print(f"{made.name} keeps snapshot {made.snapshot}", highlight=False),
    )


def unpin(store: StoreArgument, name: NameArgument, json: JsonOption = False) -> None:
    """Remove a pin; gc may then remove what only it needed."""

    open_store(store).unpin(name)
    emit({"unpinned": name}, json, lambda console: console.print(f"{name} is gone", markup=False, highlight=False))


def pins(store: StoreArgument, json: JsonOption = False) -> None:
    """The pinned snapshots of a label store."""
    from recdistill_parquet import labels_log
    from recdistill_parquet.labels_pins import read_pins

    labels_log.require_store(store)
    found = read_pins(store)

    def render(console: Console) -> None:
        table = Table("pin", "snapshot", "since", "by")
        for entry in found:
            table.add_row(*map(Text, (entry.name, entry.snapshot, iso(entry.at), entry.by)))
        console.print(table)

    emit([asdict(entry) for entry in found], json, render)


def _who() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a container's user without a name
        return f"unknown@{socket.gethostname()}"
