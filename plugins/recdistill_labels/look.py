"""``labels list`` and ``labels log``: what the log of a store says. Neither reads a label, nor imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recdistill_core.cli import JsonOption, emit
from recdistill_labels.arguments import SnapshotOption, StoreArgument, counted, iso, size
from recdistill_labels.facts import commit_row, read_versions, version_row

#: Digits of ids in tables; the store takes them instead of a whole id.
SHORT = 12


def list_versions(store: StoreArgument, snapshot: SnapshotOption = "", json: JsonOption = False) -> None:
    """The teacher versions of a label store: how many labels, of what, revoked or not."""
    head, entries = read_versions(store, snapshot)
    rows = [version_row(entry) for entry in entries]
    totals = {
        name: sum(row[name] for row in rows) for name in ("count", "segments", "bytes", "duplicates", "quarantined")
    }
    totals["bytes_per_label"] = totals["bytes"] / totals["count"] if totals["count"] else 0.0
    answer = {"store": str(store), "snapshot": head.id, "commits": head.number, "versions": rows, "totals": totals}

    def render(console: Console) -> None:
        table = Table("version", "mode", "tasks", "labels", "dataset", "trained until", "double", "aside", "revoked")
        for column in table.columns:
            column.overflow = "fold"  # what is to be copied must not be cut off
        for row in rows:
            cells = [row["version"], row["mode"], ", ".join(row["tasks"]), f"{row['count']:,}", _short(row["dataset"])]
            until = row["trained_until"]
            cells += [iso(until) if isinstance(until, int) else "", str(row["duplicates"]), str(row["quarantined"])]
            table.add_row(*map(Text, (*cells, _revoked(row))))
        console.print(table)
        for row in rows:
            if row["revoked"]:
                told = f"{row['version']}: revoked {_revoked(row)}: {row['revoked']}"
                console.print(told, markup=False, highlight=False, soft_wrap=True)
        told = f"{counted(totals['count'], 'label')} in {counted(totals['segments'], 'segment')}"
        told += f", {size(totals['bytes'])}"
        told += f" ({totals['bytes_per_label']:.1f} bytes a label)" if totals["count"] else ""
        console.print(told, highlight=False)
        console.print(f"snapshot {head.id}, commit {head.number}", highlight=False)

    emit(answer, json, render)


def log(
    store: StoreArgument,
    number: Annotated[int | None, typer.Option("-n", "--number", min=1, help="Only so many, the newest.")] = None,
    json: JsonOption = False,
) -> None:
    """The commits of a label store, newest first."""
    from recdistill_parquet import labels_log

    labels_log.require_store(store)
    rows = [commit_row(entry) for entry in reversed(labels_log.history(store, number))]

    def render(console: Console) -> None:
        table = Table("commit", "id", "at", "by", "what")
        for column in table.columns:
            column.overflow = "fold"
        for row in rows:
            cells = (str(row["number"]), row["id"][:SHORT], iso(row["at"]), row["by"], "\n".join(row["done"]))
            table.add_row(*map(Text, cells))
        console.print(table)

    emit(rows, json, render)


def _short(dataset: Any) -> str:
    return dataset[:SHORT] if isinstance(dataset, str) else ""


def _revoked(row: Mapping[str, Any]) -> str:
    if not row["revoked"]:
        return ""
    since = row["revoked_since"]
    return "all" if since is None else f"since {iso(since)}"
