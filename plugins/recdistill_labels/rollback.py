"""``labels revoke`` and ``labels restore``: take a teacher version out of what students see, and put it back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from recdistill_core.cli import JsonOption, emit
from recdistill_labels.arguments import StoreArgument, VersionOption, iso, open_store, time_ms
from recdistill_labels.facts import read_versions

if TYPE_CHECKING:
    from recdistill_parquet.labels import ParquetLogitStore


def revoke(
    store: StoreArgument,
    version: VersionOption,
    reason: Annotated[str, typer.Option("--reason", help="What is wrong with them, for those who come later.")],
    since: Annotated[
        str, typer.Option("--since", help="Only labels scored at this time or later: ISO, or ms since the epoch.")
    ] = "",
    json: JsonOption = False,
) -> None:
    """Make labels of a version invisible; snapshots from before still show them."""

    at = time_ms(since, "--since") if since else None
    opened = open_store(store)
    version = read_versions(store, versions=[version])[1][0].version
    opened.revoke(version, reason=reason, since=at)
    part = "" if at is None else f", those scored since {iso(at)}"
    _finish(opened, version, f"revoked{part}", json)


def restore(store: StoreArgument, version: VersionOption, json: JsonOption = False) -> None:
    """Make the revoked labels of a version visible again."""

    opened = open_store(store)
    version = read_versions(store, versions=[version])[1][0].version
    opened.restore(version)
    _finish(opened, version, "restored", json)


def _finish(store: ParquetLogitStore, version: str, done: str, json: bool) -> None:
    """Print what the version is like now."""
    from recdistill_parquet.labels_view import count_visible

    head, (entry,) = read_versions(store.path, versions=[version])
    seen = count_visible(store.path, entry)
    answer: dict[str, Any] = {
        "store": str(store.path),
        "version": version,
        "revoked": entry.revoked.reason if entry.revoked else "",
        "revoked_since": entry.revoked.since if entry.revoked else None,
        "count": entry.count,
        "visible": seen,
        "snapshot": head.id,
    }

    def render(console: Console) -> None:
        told = f"{version}: {done}; {seen:,} of its {entry.count:,} labels are visible"
        console.print(told, markup=False, highlight=False, soft_wrap=True)
        console.print(f"snapshot {head.id}, commit {head.number}", highlight=False)

    emit(answer, json, render)
