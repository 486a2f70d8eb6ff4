"""``labels compact`` and ``labels gc``: fewer, fuller files, and none that nobody needs."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recdistill_core.cli import JsonOption, emit
from recdistill_core.console import progress_bar
from recdistill_labels.arguments import StoreArgument, VersionsOption, counted, open_store, seconds, size
from recdistill_labels.facts import read_versions


def compact(
    store: StoreArgument,
    version: VersionsOption = None,
    segment_rows: Annotated[int, typer.Option("--segment-rows", min=1, help="Rows of a segment file.")] = 1_000_000,
    json: JsonOption = False,
) -> None:
    """Write the labels of each version, or of those named, to fewer, fuller segments; gc removes the old ones."""
    opened, found = open_store(store, segment_rows=segment_rows), []
    for entry in read_versions(store, versions=version or ())[1]:
        with progress_bar() as tell:
            found.append(opened.compact(entry.version, partial(tell, f"compacting {entry.version}")))

    def render(console: Console) -> None:
        table = Table("version", "labels", "segments", "now", "bytes", "now")
        for done in found:
            cells = [done.version, f"{done.rows:,}", f"{done.segments_before:,}", f"{done.segments_after:,}"]
            table.add_row(*map(Text, [*cells, size(done.bytes_before), size(done.bytes_after)]))
        console.print(table)

    emit([asdict(done) for done in found], json, render)


def gc(
    store: StoreArgument,
    grace: Annotated[
        str, typer.Option("--grace", help="Spare files stay so long: 0, or a number with its unit (90s, 15m, 24h, 7d).")
    ] = "24h",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    json: JsonOption = False,
) -> None:
    """Remove the files that neither the newest commit nor a pin needs."""

    found = open_store(store).gc(seconds(grace, "--grace"), dry_run=dry_run)

    def render(console: Console) -> None:
        table = Table("file", "bytes", "why")
        for entry in found.removed:
            table.add_row(Text(entry.path), size(entry.bytes), entry.why)
        if found.removed:
            console.print(table)
        done = "would be removed" if dry_run else "removed"
        told = f"{counted(len(found.removed), 'file')} {done}, {size(found.bytes)}"
        told += f"; {counted(len(found.kept), 'spare file')} kept for now"
        console.print(told, highlight=False)

    emit({**asdict(found), "bytes": found.bytes}, json, render)
