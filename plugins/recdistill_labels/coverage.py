"""``labels gaps``: the stretches of time and the days of a dataset without labels, and which examples those are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from recdistill_core.cli import JsonOption, emit, messages
from recdistill_core.errors import UsageError
from recdistill_labels.arguments import (
    SnapshotOption,
    StoreArgument,
    VersionsOption,
    iso,
    open_store,
    progress,
    time_ms,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from recdistill_parquet.labels import ParquetLogitStore


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
    from recdistill_parquet import labels_log
    from recdistill_parquet.dataset import ParquetSource
    from recdistill_parquet.labels_gaps import describe

    if out is not None and out.suffix != ".parquet":
        raise UsageError(f"ids are written as Parquet, and {out.name!r} says otherwise", fix="end its name in .parquet")
    bounds = [time_ms(text, option) for text, option in ((since, "--since"), (until, "--until")) if text]
    first, last = (bounds[0] if since else None), (bounds[-1] if until else None)
    labels_log.require_store(store)
    opened, source = open_store(store, snapshot=snapshot), ParquetSource(dataset)
    versions = _wanted(opened, version)
    _warn_of_other_datasets(opened, versions, source.snapshot_id)
    start = 0 if first is None else source.row_at(first)
    rows = slice(start, source.num_rows if last is None else max(source.row_at(last), start))
    ids, times = source.column("example_id")[rows], source.column("event_time")[rows]
    with progress("reading") as tell:
        missing = unlabelled(opened, versions, ids, tell)
    found = describe(missing, times, min_rows)
    if out is not None:
        _write_ids(out, ids[missing])
    answer = {
        "store": str(store),
        "snapshot": opened.snapshot_id(),
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


def _wanted(store: ParquetLogitStore, named: Sequence[str] | None) -> list[str]:
    """The named versions, which must be there, or all."""
    known = [entry.version for entry in store.versions()]
    for name in named or ():
        if name not in known:
            store.read(name, _no_ids())  # raises the store's own error, with the versions there are
    return list(dict.fromkeys(named)) if named else known


def _no_ids() -> NDArray[np.int64]:
    import numpy as np

    return np.empty(0, np.int64)


def _warn_of_other_datasets(store: ParquetLogitStore, versions: Sequence[str], dataset: str) -> None:
    """Equal ids are equal examples only where two datasets number them alike, as a log that has grown does."""
    entries = {entry.version: entry for entry in store.versions()}
    others = {name: entries[name].facts.get("dataset", dataset) for name in versions}
    for name, other in others.items():
        if other != dataset:
            messages().print(
                f"note: the labels of version {name!r} are of dataset {other}, not of {dataset}: they count here only "
                "where both number examples alike",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


def _write_ids(path: Path, ids: NDArray[np.int64]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from recdistill_core.files import whole_or_absent

    if not path.parent.is_dir():
        raise UsageError("there is no such folder", where=str(path.parent), fix="make it, or write to another")
    with whole_or_absent(path) as place:
        columns: dict[str, Any] = {"example_id": ids}
        pq.write_table(pa.table(columns), place)
