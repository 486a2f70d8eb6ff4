"""Which labels of the store a student learns from: versions and policy, chosen examples, and the snapshot's pin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recdistill_core.errors import DataError, IntegrityError, LeakError, UsageError
from recdistill_core.fingerprint import digest
from recdistill_core.interfaces import CaptureMode, LabelVersion, LogitStore, SampleSource
from recdistill_core.labels import AlignedLabels, LabelChoice, LabelPolicy, PinnedStore, full_name
from recdistill_lightning.data import align_labels
from recdistill_pipeline.plan import Plan
from recdistill_pipeline.runconfig import OWN
from recdistill_pipeline.statistics import auc_of

MIXED = "mixed"


def label_facts(entries: Sequence[LabelVersion], policy: LabelPolicy = LabelPolicy.EXACT) -> dict[str, Any]:
    """What a step's manifest says of its labels; ``mode`` is ``mixed`` where the versions have several."""
    modes, views = ({str(part) for part in parts} for parts in zip(*((e.mode, e.view) for e in entries), strict=True))
    mode = CaptureMode.LEAKY.value if CaptureMode.LEAKY in modes else next(iter(modes)) if len(modes) == 1 else MIXED
    return {
        "version": ", ".join(entry.version for entry in entries),
        "versions": [entry.version for entry in entries],
        "policy": policy.value,
        "mode": mode,
        "modes": sorted(modes),
        "tasks": list(entries[0].tasks),
        "count": sum(entry.count for entry in entries),
        "view": ", ".join(sorted(views)),
    }


def choice_of(labels: Mapping[str, Any]) -> LabelChoice:
    """The choice that a manifest's facts stand for."""
    return LabelChoice(tuple(labels["versions"]), LabelPolicy(labels["policy"]))


def published_choice(plan: Plan, store: LogitStore, source: SampleSource) -> dict[str, Any]:
    """Facts of the versions that ``labels.versions`` names, of which none is the run's own.

    Raises:
        DataError: if the store lacks one. IntegrityError, LeakError: if one is not fit for this dataset and run.
    """
    names = plan.config.labels.versions
    return label_facts(_entries(plan, store, source, names), LabelPolicy(plan.config.labels.policy))


def require_others(plan: Plan, store: LogitStore, source: SampleSource) -> None:
    """Find before a teacher is trained that a version of others, which its labels are to be mixed with, is not fit.

    Raises:
        DataError: if the store lacks one. IntegrityError, LeakError: if one is not fit for this dataset and run.
    """
    _entries(plan, store, source, [name for name in plan.config.labels.versions if name != OWN])


def published_store(plan: Plan, store: LogitStore) -> LogitStore:
    """The store as ``labels.snapshot`` wants it read.

    Raises:
        UsageError: if the store has no snapshots to read. DataError: if it has none of this id.
    """
    wanted = plan.config.labels.snapshot
    if not wanted:
        return store
    if not isinstance(store, PinnedStore):
        raise UsageError(
            f"a store of the type {type(store).__name__} cannot be read at a snapshot",
            where="labels.snapshot",
            fix="leave the snapshot out, or use a store that keeps its commits, such as parquet",
        )
    return store.at(wanted)


def allowed_labels(plan: Plan, source: SampleSource, store: LogitStore, own: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of the versions that the students may learn from.

    Args:
        plan: the run. source: the dataset. store: where the labels are. own: ``labels`` of the teacher step.

    Raises:
        DataError: if the store lacks a version. IntegrityError, LeakError: if one is not fit for this run.
    """
    config = plan.config.labels
    if not config.own or not plan.config.mixes():
        return dict(own)
    names = [name for part in config.versions or [OWN] for name in (own["versions"] if part == OWN else [part])]
    entries = _entries(plan, store, source, list(dict.fromkeys(names)))
    return label_facts(entries, LabelPolicy(config.policy))


def student_labels(
    plan: Plan,
    source: SampleSource,
    rows: tuple[int, int],
    store: LogitStore,
    own: Mapping[str, Any],
    run: Path | None = None,
) -> tuple[AlignedLabels, dict[str, Any]]:
    """The labels that the configuration allows, by row of the dataset, and what the student's manifest says of them.

    Args:
        plan: the run. source: the dataset. rows: the student's training rows.
        store: where the labels are.
        own: ``labels`` of the teacher step.
        run: the run directory; the snapshot that was read is pinned in its name. None: no pin.

    Raises:
        DataError: if the labels cover too little, or the store lacks a version.
        IntegrityError: for labels of another dataset. LeakError: for leaky ones without leave.
    """
    facts = allowed_labels(plan, source, store, own)
    read = published_store(plan, store)
    keep = chosen_rows(plan, source)
    aligned = align_labels(source, read, choice_of(facts), rows, plan.config.capture.min_coverage, keep)
    _require_some(read, aligned, rows)
    facts |= {
        "coverage": aligned.covered(rows),
        "by_version": aligned.coverage(rows),
        "auc": {task: _order(source, aligned, task, rows) for task in facts["tasks"]},
        "store": aligned.snapshot,
    }
    if run is not None and isinstance(store, PinnedStore):
        facts["pin"] = pin_for(store, aligned.snapshot, run, plan.config.name)
    return aligned, facts


def _order(source: SampleSource, aligned: AlignedLabels, task: str, rows: tuple[int, int]) -> float | None:
    """AUC of the labels over the very rows that they teach; None where it cannot be told."""
    outcome = source.column(f"label_{task}")[rows[0] : rows[1]]
    logit, valid = (part[rows[0] : rows[1]].numpy() for part in aligned.signal.clean(task))
    seen = valid & ~np.isnan(outcome)
    return auc_of(logit[seen], outcome[seen]) if 0 < outcome[seen].sum() < seen.sum() else None


def as_it_was(store: LogitStore, labels: Mapping[str, Any]) -> LogitStore:
    """The store at the commit that a step's ``labels`` name, so that what is measured again stays what it was."""
    return store.at(labels["store"]) if "store" in labels and isinstance(store, PinnedStore) else store


def _require_some(store: LogitStore, aligned: AlignedLabels, rows: tuple[int, int]) -> None:
    """Raise DataError where no row has a label: a student that learns from none is a raw one under another name."""
    if any(aligned.covered(rows).values()):
        return
    wanted = aligned.choice.versions
    revoked = [f"{e.version} ({e.revoked})" for e in store.versions() if e.version in wanted and e.revoked]
    raise DataError(
        "none of the students' training rows has a label that they may learn from",
        where=f"versions {', '.join(wanted)}, policy {aligned.choice.policy}; revoked: {', '.join(revoked) or 'none'}",
        fix="restore the version, name others in labels.versions, or look at labels.policy, labels.examples and "
        "labels.without",
    )


def pin_for(store: PinnedStore, snapshot: str, run: Path, name: str) -> str:
    """Keep the snapshot for as long as the run is there; returns the pin's name."""
    pin = f"run-{digest([str(run.resolve())])[:12]}-{snapshot[:12]}"
    kept = store.at(snapshot)
    if isinstance(kept, PinnedStore):
        kept.pin(pin, f"run {name} in {run.resolve()}")
    return pin


def _entries(plan: Plan, store: LogitStore, source: SampleSource, names: Sequence[str]) -> list[LabelVersion]:
    known = {entry.version: entry for entry in published_store(plan, store).versions()}
    found = []
    for name in (full_name(name, known) for name in names):
        if name not in known:
            raise DataError(
                f"the label store has no version {name!r}",
                where=f"labels.versions; the store has {', '.join(known) or 'none'}",
                fix="name versions that are there ('recdistill labels list STORE'), and the store in store.path",
            )
        entry = known[name]
        dataset = entry.facts.get("dataset")
        if dataset not in (None, source.snapshot_id) and not plan.config.labels.allow_other_dataset:
            raise IntegrityError(
                f"the labels of version {name!r} were made for dataset {dataset}, and this is {source.snapshot_id}",
                where="labels.versions",
                fix="read that dataset, or set labels.allow_other_dataset where equal ids are the same examples",
            )
        if entry.mode == CaptureMode.LEAKY and not plan.config.capture.allow_leaky:
            raise LeakError(
                f"the labels of version {name!r} are leaky: their teacher had been trained on the examples",
                where="labels.versions",
                fix="choose another version; capture.allow_leaky reads them, to show the damage",
            )
        found.append(entry)
    return found


def chosen_rows(plan: Plan, source: SampleSource) -> NDArray[np.bool_] | None:
    """``[rows of the dataset]``: which rows keep their labels; None where all do.

    Raises:
        DataError: if a list of examples cannot be read.
    """
    config = plan.config.labels
    if not config.examples and not config.without:
        return None
    ids = source.column("example_id")
    keep = np.ones(ids.shape, np.bool_)
    if config.examples:
        keep &= np.isin(ids, read_example_ids(Path(config.examples), "labels.examples"))
    if config.without:
        keep &= ~np.isin(ids, read_example_ids(Path(config.without), "labels.without"))
    return keep


def read_example_ids(path: Path, setting: str) -> NDArray[np.int64]:
    """``[M]`` the column ``example_id`` of a Parquet file; of one with a column ``rejected``, the rejected rows alone.

    Raises:
        DataError: if it cannot be read, lacks the column, or holds something else than ids in it.
    """
    try:
        table = pq.read_table(path, columns=[c for c in pq.read_schema(path).names if c in ("example_id", "rejected")])
        if "rejected" in table.column_names:  # as 'labels discriminate --all' writes it
            table = table.filter(table["rejected"])
        column = table["example_id"]
        if column.null_count or not pa.types.is_integer(column.type):
            raise ValueError("example_id must be integers, none of them null")
        ids: NDArray[np.int64] = column.cast(pa.int64()).to_numpy()
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"the list of examples cannot be read: {error}",
            where=f"{setting}: {path}",
            fix="give a Parquet file with an integer column example_id",
        ) from error
    return ids
