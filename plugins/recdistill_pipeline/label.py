"""The labelling job: a teacher that recdistill does not train scores rows, and its logits go to a store."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recdistill_core.batch import Batch
from recdistill_core.errors import DataError, IntegrityError, LeakError, UsageError
from recdistill_core.interfaces import (
    CaptureMode,
    HistoryWindow,
    LabelVersion,
    LabelWriter,
    LogitStore,
    SampleSource,
    Teacher,
    TrainableTeacher,
)
from recdistill_lightning.rows import read_batch

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Labelled:
    """What a labelling job did.

    Attributes:
        version: the labels' version, as it is in the store now.
        rows: rows asked for. known: those that had a label before. added: those that got one.
        unscored: those for which the teacher has no score; the first few examples are ``unscored_examples``.
    """

    version: LabelVersion
    rows: int
    known: int
    added: int
    unscored: int
    unscored_examples: tuple[int, ...]


def label_rows(
    teacher: Teacher,
    source: SampleSource,
    store: LogitStore,
    rows: tuple[int, int] | NDArray[np.int64],
    tasks: Sequence[str],
    *,
    facts: Mapping[str, Any] | None = None,
    history: HistoryWindow | None = None,
    batch_rows: int | None = None,
    commit_rows: int = 100_000,
    commit_seconds: float = 60.0,
    progress: Progress | None = None,
) -> Labelled:
    """Give every row its label of this teacher; rows that have one are not scored again.

    Labels are committed every ``commit_rows`` rows and every ``commit_seconds``, and when scoring fails, so a job that
    ended early goes on where it stopped when it is started again.

    Args:
        teacher: scores rows; NaN for a row of which it knows nothing, which then gets no label.
        source: the dataset. store: where the labels go, under the teacher's fingerprint and the mode ``external``.
        rows: ``(first, last + 1)``, or row positions ``[R]`` int64.
        tasks: every row gets a logit of each, or no label.
        facts: further notes for the version, JSON-able. history: how much history the teacher reads, None for none.
        batch_rows: rows that the teacher is given at once; those before a failure keep their labels. None: its
            own ``batch_rows`` where it has such an attribute, else 4,096.
        progress: told ``(rows done, rows to do)`` after each commit.

    Raises:
        UsageError: for a teacher that recdistill trains, no tasks, or a version that is revoked.
        LeakError: if the store has this version with another mode.
        IntegrityError: if it has it for another dataset, in which equal ids may be other examples.
        DataError: if the teacher scores other tasks or shapes, or knows none of the rows.
    """
    _require_black_box(teacher, tasks)
    size = getattr(teacher, "batch_rows", 4096) if batch_rows is None else batch_rows
    if min(size, commit_rows) < 1:
        raise UsageError(f"batch_rows and commit_rows must be >= 1, got {size} and {commit_rows}")
    version, ids = teacher.fingerprint(), source.column("example_id")
    wanted = np.arange(*rows) if isinstance(rows, tuple) else np.unique(np.asarray(rows, np.int64))
    todo = wanted[~_known(store, version, tuple(tasks), source, ids[wanted])]
    job = _Job(teacher, version, tuple(tasks), commit_rows, commit_seconds, progress or (lambda done, total: None))
    if todo.size:
        noted = {"dataset": source.snapshot_id, **(facts or {})}
        view = source.schema.view_hash()
        job.writer = store.writer(version, tasks=list(tasks), mode=CaptureMode.EXTERNAL, view=view, facts=noted)
        job.run((read_batch(source, part, history) for part in _parts(todo, size)), todo.size)
    found = {entry.version: entry for entry in store.versions()}
    if version not in found:
        shown = ", ".join(map(str, job.examples))
        raise DataError(
            f"the teacher has a score of tasks {', '.join(tasks)} for none of the {wanted.size:,} rows",
            where=f"examples {shown}, ..." if shown else "no rows were asked for",
            fix="check what its scores are looked up by",
        )
    known = wanted.size - todo.size
    return Labelled(found[version], wanted.size, known, job.added, job.unscored, tuple(job.examples))


@dataclass
class _Job:
    """The rows that one call of :func:`label_rows` scores."""

    teacher: Teacher
    version: str
    tasks: tuple[str, ...]
    commit_rows: int
    commit_seconds: float
    progress: Progress
    writer: LabelWriter | None = None
    added: int = 0
    unscored: int = 0
    pending: int = 0

    def __post_init__(self) -> None:
        self.examples: list[int] = []
        self.last_commit = time.monotonic()

    def run(self, batches: Any, total: int) -> None:
        """Score the batches and commit their labels, as many as there are when something goes wrong."""
        done = 0
        try:
            for batch in batches:
                self._append(batch, self._scored(batch))
                done += len(batch)
                late = time.monotonic() - self.last_commit >= self.commit_seconds
                if self.pending >= self.commit_rows or (late and self.pending):
                    self._commit()
                    self.progress(done, total)
        except BaseException:
            if self.writer is not None:
                self.writer.abort()
            raise
        self._commit()
        self.progress(done, total)

    def _scored(self, batch: Batch) -> dict[str, Tensor]:
        try:
            return score_batch(self.teacher, batch, self.tasks)
        except (Exception, KeyboardInterrupt):
            self._commit()  # what was scored so far may have been paid for
            raise

    def _append(self, batch: Batch, logits: Mapping[str, Tensor]) -> None:
        known = with_scores(logits)
        ids = batch.example_id.cpu()
        self.unscored += int((~known).sum())
        self.examples += ids[~known][: 3 - len(self.examples)].tolist()
        if self.writer is not None and known.any():
            kept = {task: logit[known] for task, logit in logits.items()}
            self.writer.append(ids[known], kept, step=-1, scored_at=time.time_ns() // 1_000_000)
            self.pending += int(known.sum())

    def _commit(self) -> None:
        if self.writer is not None and self.pending:
            self.writer.commit()
            self.added += self.pending
            self.pending = 0
        self.last_commit = time.monotonic()


def score_batch(teacher: Teacher, batch: Batch, tasks: Sequence[str]) -> dict[str, Tensor]:
    """Raw logits ``{task: [N]}`` of a batch, of which the teacher is shown no outcome; NaN where it knows nothing.

    Raises:
        DataError: if the teacher gives other tasks or shapes.
    """
    logits = teacher.score(batch.without_outcomes()).logits
    for task in tasks:
        if task not in logits or logits[task].shape != batch.example_id.shape:
            given = f"shape {list(logits[task].shape)}" if task in logits else "no logits"
            raise DataError(
                f"the teacher gave {given} of task {task!r} for {len(batch)} rows",
                where=f"{type(teacher).__name__}.score",
                fix="return one logit of every task for each row, NaN where there is none",
            )
    return {task: logits[task].detach().float().cpu() for task in tasks}


def with_scores(logits: Mapping[str, Tensor]) -> Tensor:
    """``[N]`` bool: rows that have a logit of every task."""
    return ~torch.stack([torch.isnan(logit) for logit in logits.values()]).any(dim=0)


def _require_black_box(teacher: Teacher, tasks: Sequence[str]) -> None:
    if isinstance(teacher, TrainableTeacher):
        raise UsageError(
            f"{type(teacher).__name__} is trained by recdistill, which must know what it was trained on",
            where="label_rows",
            fix="capture its logits while it trains (LogitCapture), or use capture_after_training",
        )
    if not tasks:
        raise UsageError("label_rows needs at least one task")


def _known(
    store: LogitStore, version: str, tasks: tuple[str, ...], source: SampleSource, ids: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """``[R]``: which examples have a label of this version."""
    entry = next((found for found in store.versions() if found.version == version), None)
    if entry is None:
        return np.zeros(ids.shape, np.bool_)
    if entry.mode != CaptureMode.EXTERNAL:
        raise LeakError(
            f"the store has version {version!r} with labels of the mode {entry.mode.value}",
            where="logit store",
            fix="give the external teacher another version, or another store",
        )
    dataset = entry.facts.get("dataset")
    if dataset != source.snapshot_id:
        raise IntegrityError(
            f"the store has labels of version {version!r} for dataset {dataset}, and this is {source.snapshot_id}",
            where="logit store",
            fix="use another store for this dataset: equal example ids may be other examples in it",
        )
    if entry.revoked:
        raise UsageError(
            f"the labels of version {version!r} are revoked: {entry.revoked}",
            where="logit store",
            fix="restore them, or give the external teacher another version",
        )
    valid = store.read(version, ids).valid
    return torch.stack([valid[task] for task in tasks]).all(dim=0).numpy()


def _parts(rows: NDArray[np.int64], size: int) -> Any:
    return (rows[first : first + size] for first in range(0, rows.size, size))
