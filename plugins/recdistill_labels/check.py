"""``labels verify``: reads everything and says what is wrong where; exit code 5 where labels are lost or wrong."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from recdistill_core.cli import JsonOption, emit
from recdistill_core.console import progress_bar
from recdistill_core.errors import IntegrityError, UsageError
from recdistill_labels.arguments import StoreArgument, counted

if TYPE_CHECKING:
    from recdistill_parquet.dataset import ParquetSource
    from recdistill_parquet.labels import ParquetLogitStore
    from recdistill_parquet.labels_findings import Finding, Thresholds
    from recdistill_parquet.labels_verify import Outcomes

COLOURS = {"error": "red", "warning": "yellow", "info": "dim"}
#: As in ``recdistill_parquet.labels_findings.Thresholds``, which cannot be imported for ``--help``: it needs numpy.
DRIFT, CALIBRATION, QUARANTINED = 0.25, 0.1, 0.0005


def verify(
    store: StoreArgument,
    dataset: Annotated[
        Path | None, typer.Option("--dataset", help="Dataset whose outcomes the logits are compared with.")
    ] = None,
    drift: Annotated[
        float, typer.Option("--drift", help="Stability index between early and late labels worth a warning.")
    ] = DRIFT,
    calibration: Annotated[
        float, typer.Option("--calibration", help="Relative difference from the rate of positives worth a warning.")
    ] = CALIBRATION,
    quarantined: Annotated[
        float, typer.Option("--quarantined", help="Share of rows set aside worth a warning.")
    ] = QUARANTINED,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail too.")] = False,
    json: JsonOption = False,
) -> None:
    """Read all of a label store and say what is wrong where. Exit code 5 if something is."""
    from recdistill_parquet.dataset import ParquetSource
    from recdistill_parquet.labels import ParquetLogitStore

    opened, thresholds = ParquetLogitStore(store), _thresholds(drift, calibration, quarantined)
    source = None if dataset is None else ParquetSource(dataset)
    with progress_bar() as tell:
        found = list(opened.verify(None if source is None else outcomes(source), thresholds, partial(tell, "reading")))
    if source is not None:
        found += _of_other_datasets(opened, source, found)
    counts = {kind: sum(finding.severity.value == kind for finding in found) for kind in COLOURS}
    ok = not counts["error"] and not (strict and counts["warning"])
    rows = [asdict(finding) for finding in found]

    def render(console: Console) -> None:
        for finding in found:
            kind = finding.severity.value
            console.print(f"[{COLOURS[kind]}]{kind}[/{COLOURS[kind]}] {finding.check}", highlight=False)
            for line in (finding.where, finding.what):
                console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
        told = f"{counted(counts['error'], 'error')}, {counted(counts['warning'], 'warning')}"
        console.print(f"{store}: {'ok, ' if ok else ''}{told}", markup=False, highlight=False, soft_wrap=True)

    emit({"store": str(store), "ok": ok, "counts": counts, "findings": rows}, json, render)
    if not ok:
        raise typer.Exit(IntegrityError.exit_code)


def outcomes(source: ParquetSource) -> Outcomes:
    """The observed labels of a dataset, by task."""
    ids, found = source.column("example_id"), dict[str, tuple[Any, Any]]()
    for task in source.schema.tasks:
        seen = source.column(f"observed_{task}")
        found[task] = ids[seen], source.column(f"label_{task}")[seen]
    return found


def _of_other_datasets(store: ParquetLogitStore, source: ParquetSource, found: list[Finding]) -> list[Finding]:
    """A remark for each version that was compared with a dataset other than the one that it was captured from."""
    from recdistill_parquet.labels_findings import Finding, Severity

    if any(finding.check == "log" and finding.severity is Severity.ERROR for finding in found):
        return []  # which versions there are cannot be read
    remarks = []
    for entry in store.versions():
        dataset = entry.facts.get("dataset", source.snapshot_id)
        if dataset != source.snapshot_id and set(entry.tasks) & set(source.schema.tasks):
            what = (
                f"its labels are of dataset {dataset}, the outcomes of {source.snapshot_id}: they belong together only "
                "where both number examples alike"
            )
            remarks.append(Finding(Severity.INFO, "calibration", f"version {entry.version!r}", what))
    return remarks


def _thresholds(drift: float, calibration: float, quarantined: float) -> Thresholds:
    from recdistill_parquet.labels_findings import Thresholds

    try:
        return Thresholds(drift, calibration, quarantined)
    except ValueError as error:
        raise UsageError(str(error), where="labels verify", fix="give a number that is not negative") from None
