"""``labels gaps``: the stretches of time and the days of a dataset without labels, and which examples those are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from recdistill_core.cli import JsonOption, emit, messages
from recdistill_core.console import progress_bar
from recdistill_core.errors import UsageError
from recdistill_labels.arguments import SnapshotOption, StoreArgument, VersionsOption, iso, time_ms
from recdistill_labels.facts import read_versions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from recdistill_parquet.labels_state import VersionEntry


def gaps(
    store: StoreArgument,
    dataset: Annotated[Path, typer.Argument(help="An imported dataset.", metavar="DATASET")],
    version: VersionsOption = None,
    min_rows: Annotated[int, typer.Option("--min-rows", min=1, help="Least rows of a stretch that is listed.")] = 1,
    since: Annotated[str, typer.Option("--since", help="Only rows shown at this time or later.")] = "",
    until: Annotated[str, typer.Option("--until", help="Only rows shown before this time.")] = "",
    out: Annotated[
        Path | None, typer.Option("--out", help="Parquet file for the example ids that have no label.")
    ] = None,
    snapshot: SnapshotOption = "",
    json: JsonOption = False,
) -> None:
    """Where a dataset has no labels. A label of any of the versions will do; all versions count where none is named."""
    from recdistill_core.label_choice import unlabelled
    from recdistill_parquet.dataset import ParquetSource
    from recdistill_parquet.labels import ParquetLogitStore
    from recdistill_parquet.labels_gaps import describe

    if out is not None:
        _check_out(out)
    head, entries = read_versions(store, snapshot, version or ())
    opened, source = ParquetLogitStore(store, snapshot=head.id if head.number else ""), ParquetSource(dataset)
    versions = [entry.version for entry in entries]
    _warn_of_other_datasets(entries, source.snapshot_id)
    first = source.row_at(time_ms(since, "--since")) if since else 0
    last = source.row_at(time_ms(until, "--until")) if until else source.num_rows
    rows = slice(first, max(last, first))
    ids, times = source.column("example_id")[rows], source.column("event_time")[rows]
    with progress_bar() as tell:
        missing = unlabelled(opened, versions, ids, partial(tell, "reading"))
    found = describe(missing, times, min_rows)
    if out is not None:
        _write_ids(out, ids[missing])
    answer = {
        "store": str(store),
        "snapshot": head.id,
        "dataset": source.snapshot_id,
        "versions": versions,
        "rows": found.rows,
        "missing": found.missing,
        "coverage": found.coverage,
        "gaps": [asdict(gap) for gap in found.gaps],
        "days": [asdict(day) for day in found.days],
        "out": None if out is None else str(out),
    }

    def render(console: Console) -> None:
        stretches = Table("first event without a label", "last", "rows")
        for gap in found.gaps:
            stretches.add_row(iso(gap.first), iso(gap.last), f"{gap.rows:,}")
        days = Table("day (UTC)", "rows", "without a label", "covered")
        for day in found.days:
            days.add_row(day.day, f"{day.rows:,}", f"{day.missing:,}", f"{1 - day.missing / day.rows:.1%}")
        for table in (stretches, days):
            if table.rows:
                console.print(table)
        told = f"{found.missing:,} of {found.rows:,} rows have no label; {found.coverage:.2%} are covered"
        console.print(told, highlight=False)
        if out is not None:
            console.print(f"their ids: {out}", markup=False, highlight=False, soft_wrap=True)

    emit(answer, json, render)


def _warn_of_other_datasets(entries: Sequence[VersionEntry], dataset: str) -> None:
    """Equal ids are equal examples only where two datasets number them alike, as a log that has grown does."""
    for entry in entries:
        other = entry.facts.get("dataset", dataset)
        if other != dataset:
            messages().print(
                f"note: the labels of version {entry.version!r} are of dataset {other}, not of {dataset}: "
                "they count here only where both number examples alike",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


def _check_out(path: Path) -> None:
    """Found before the work, not after it."""
    if path.suffix != ".parquet":
        raise UsageError(
            f"ids are written as Parquet, and {path.name!r} says otherwise", fix="end its name in .parquet"
        )
    if not path.parent.is_dir():
        raise UsageError("there is no such folder", where=str(path.parent), fix="make it, or write to another")


def _write_ids(path: Path, ids: NDArray[np.int64]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from recdistill_core.files import whole_or_absent

    with whole_or_absent(path) as place:
        columns: dict[str, Any] = {"example_id": ids}
        pq.write_table(pa.table(columns), place)
