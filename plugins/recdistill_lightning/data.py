"""The data module: a dataset, a time split, a read order and, for students, the labels of one teacher version."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from recdistill_core.batch import Batch, TeacherSignal
from recdistill_core.errors import DataError, UsageError
from recdistill_core.interfaces import HistoryWindow, LogitStore, SampleSource
from recdistill_core.label_choice import choose_labels
from recdistill_core.labels import AlignedLabels, AlignedStore, LabelChoice
from recdistill_lightning.order import ReadOrder, row_batches

__all__ = ["DistillationDataModule", "ReadOrder", "align_labels", "read_labels"]


class RowBatches(Dataset[Batch]):
    """``batches[rows]`` is the Batch of these row positions, with teacher labels where there are any."""

    def __init__(self, source: SampleSource, history: HistoryWindow | None, labels: TeacherSignal | None) -> None:
        self.source, self.history, self.labels = source, history, labels

    def __getitem__(self, rows: NDArray[np.int64]) -> Batch:
        batch = self.source.batch(rows, self.history).validate(schema=self.source.schema)
        return batch if self.labels is None else batch.with_teacher(labels_at(self.labels, rows))


def labels_at(labels: TeacherSignal, rows: NDArray[np.int64]) -> TeacherSignal:
    """Labels of the row positions ``rows [N]``, copied out of those of all rows."""
    index = torch.from_numpy(rows)
    return replace(
        labels,
        logits={task: logit.index_select(0, index) for task, logit in labels.logits.items()},
        valid={task: valid.index_select(0, index) for task, valid in labels.valid.items()},
        scored_at=None if labels.scored_at is None else labels.scored_at.index_select(0, index),
    )


@dataclass(frozen=True)
class Phases:
    """The schedule: a batch phase that may be read several times, then a stream phase that is read once.

    Attributes:
        start, stop: row positions ``[start, stop)`` of all training rows.
        stream: first row of the stream phase; ``stop`` where there is none.
        batch_epochs: passes over the batch phase ``[start, stream)``.
    """

    start: int
    stop: int
    stream: int
    batch_epochs: int = 1

    def __post_init__(self) -> None:
        if not self.start <= self.stream <= self.stop:
            raise ValueError(f"phases need start <= stream <= stop, got {self.start}, {self.stream}, {self.stop}")
        if self.batch_epochs < 1:
            raise ValueError(f"batch_epochs must be >= 1, got {self.batch_epochs}")

    def passes(self) -> list[tuple[int, int]]:
        """Row range of each epoch; what ``max_epochs`` of the Trainer should be is their number."""
        batch = [(self.start, self.stream)] * self.batch_epochs if self.stream > self.start else []
        return batch + ([(self.stream, self.stop)] if self.stop > self.stream else [])

    def first_sight(self, epoch: int) -> bool:
        """Whether an epoch reads rows that no earlier epoch has read."""
        return epoch == 0 or (self.stop > self.stream and epoch == len(self.passes()) - 1)


class RowSampler(Sampler[NDArray[np.int64]]):
    """Yields the rows of one batch after another; every epoch has its own rows and seeded order.

    It has no length: Lightning would keep the first epoch's for all.
    """

    def __init__(
        self,
        source: SampleSource,
        phases: Phases,
        order: ReadOrder,
        seed: int,
        keep: NDArray[np.bool_] | None = None,
    ) -> None:
        self.source, self.order, self.seed, self.keep = source, order, seed, keep
        self.passes = phases.passes()
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        if self.epoch >= len(self.passes):
            raise UsageError(
                f"epoch {self.epoch + 1} was asked for, the schedule has {len(self.passes)}",
                where="lightning.Trainer(max_epochs=...)",
                fix="set max_epochs=data.epochs, or more batch_epochs",
            )
        start, stop = self.passes[self.epoch]
        return row_batches(self.source, start, stop, self.order, self.seed + 1_000_003 * self.epoch, self.keep)


class DistillationDataModule(L.LightningDataModule):
    """Batches of one dataset in time order.

    Args:
        source: the dataset.
        order: batch size and order of the training rows.
        train: ``(first, last + 1)`` row positions to train on; the whole dataset where None.
        stream_from: first row of the stream phase, which is read once, after ``batch_epochs`` passes over the rows
            before it; None: all rows are batch phase.
        batch_epochs: passes over the batch phase.
        keep: ``[rows of the dataset]`` bool: which rows are trained on, such as all but a fold; None: all of ``train``.
        test: row positions for validation, testing and prediction, read in strict time order.
        history: how much history each row needs; ``module.history`` of a teacher or student.
        labels: teacher labels of all rows of the dataset (see :func:`read_labels`, :func:`align_labels`), or None.
        seed: of the order inside windows.
    """

    def __init__(
        self,
        source: SampleSource,
        order: ReadOrder | None = None,
        *,
        train: tuple[int, int] | None = None,
        stream_from: int | None = None,
        batch_epochs: int = 1,
        keep: NDArray[np.bool_] | None = None,
        test: tuple[int, int] | None = None,
        history: HistoryWindow | None = None,
        labels: TeacherSignal | AlignedLabels | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        labels = labels.signal if isinstance(labels, AlignedLabels) else labels
        self.source, self.order, self.seed = source, order or ReadOrder(), seed
        start, stop = train or (0, source.num_rows)
        stream = stop if stream_from is None else min(max(stream_from, start), stop)
        if keep is not None:
            keep = np.asarray(keep, np.bool_)
            _require_rows(keep, source.num_rows)
            kept = start + np.flatnonzero(keep[start:stop])
            # a phase without a row would be an epoch without a batch
            stream = stop if kept.size and kept[-1] < stream else start if kept.size and kept[0] >= stream else stream
        self.phases = Phases(start, stop, stream, batch_epochs)
        self.keep, self.test_rows = keep, test
        self.batches = RowBatches(source, history, labels)

    @property
    def epochs(self) -> int:
        """What ``max_epochs`` of the Trainer must be."""
        return len(self.phases.passes())

    @property
    def total_steps(self) -> int:
        """Training batches of the whole schedule."""
        return self.updates(1)

    def updates(self, accumulate: int) -> int:
        """Optimizer steps of the whole schedule, ``accumulate`` batches to a step; an epoch's rest is a step."""
        ranges = self.phases.passes()
        passes = [row_batches(self.source, start, stop, self.order, 0, self.keep) for start, stop in ranges]
        return sum(-(-sum(1 for _ in batches) // accumulate) for batches in passes)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Training rows in the read order.

        Raises:
            UsageError: with more than one process, all of which would read the same rows.
        """
        if self.trainer is not None and self.trainer.world_size > 1:
            raise UsageError(
                f"the data module feeds one process, and this run has {self.trainer.world_size}",
                where="lightning.Trainer(devices=..., num_nodes=...)",
                fix="train on one device; rows are not sharded over processes yet",
            )
        return self._loader(self.phases, self.order)

    def training_batches(self) -> Iterator[Batch]:
        """Every training row once, in the read order, without teacher labels; for debiasers that must look first."""
        phases = self.phases
        for rows in row_batches(self.source, phases.start, phases.stop, self.order, self.seed, self.keep):
            yield self.source.batch(rows, self.batches.history)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """The test rows, or nothing where there are none."""
        return self.test_dataloader() if self.test_rows else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test rows in strict time order.

        Raises:
            DataError: if the data module has no test rows.
        """
        if self.test_rows is None:
            raise DataError("this data module has no test rows", fix="give test=(first, last + 1)")
        first, last = self.test_rows
        # one pass, whatever the training epoch: a range of its own that every epoch reads
        return DataLoader(
            self.batches,
            sampler=list(row_batches(self.source, first, last, replace(self.order, window_hours=0.0), 0)),
            batch_size=None,
        )

    def predict_dataloader(self) -> DataLoader[Batch]:
        """As :meth:`test_dataloader`."""
        return self.test_dataloader()

    def _loader(self, phases: Phases, order: ReadOrder) -> DataLoader[Batch]:
        sampler = RowSampler(self.source, phases, order, self.seed, self.keep)
        return DataLoader(self.batches, sampler=sampler, batch_size=None)


def read_labels(
    source: SampleSource,
    store: LogitStore,
    version: str | LabelChoice,
    rows: tuple[int, int],
    min_coverage: float = 0.0,
) -> tuple[TeacherSignal, dict[str, float]]:
    """Labels for every row of a dataset, in row order, and the share of ``rows`` that has one, by task.

    See :func:`align_labels`, which also says which version labels a row.
    """
    aligned = align_labels(source, store, version, rows, min_coverage)
    return aligned.signal, aligned.covered(rows)


def align_labels(
    source: SampleSource,
    store: LogitStore,
    version: str | LabelChoice,
    rows: tuple[int, int],
    min_coverage: float = 0.0,
    keep: NDArray[np.bool_] | None = None,
) -> AlignedLabels:
    """Labels for every row of a dataset, in row order, all of them from one snapshot of the store.

    Args:
        source: the dataset. store: where the labels are.
        version: one teacher version, or several and a policy.
        rows: row positions ``[first, last + 1)`` to train on.
        min_coverage: least share of them, in [0, 1], that must have a label of each task.
        keep: ``[rows of the dataset]`` bool: which rows keep their label; None: all.

    Raises:
        DataError: if fewer have one, the store cannot serve the choice, or ``keep`` has another length.
    """
    choice = LabelChoice((version,)) if isinstance(version, str) else version
    ids, times = source.column("example_id"), source.column("event_time")
    if isinstance(store, AlignedStore):
        aligned = store.aligned(choice, dataset=source.snapshot_id, example_id=ids, event_time=times)
    else:
        aligned = choose_labels(store, choice, ids, times)
    if keep is not None:
        _require_rows(keep, source.num_rows)
        aligned = aligned.masked(torch.from_numpy(np.ascontiguousarray(keep, np.bool_)))
    for task, share in aligned.covered(rows).items():
        if share < min_coverage:
            raise DataError(
                f"labels of teacher {aligned.signal.version} cover {share:.1%} of the training rows for task "
                f"{task!r}, less than the {min_coverage:.1%} asked for",
                where="logit store",
                fix="capture the missing rows, or lower min_coverage",
            )
    return aligned


def _require_rows(keep: NDArray[np.bool_], count: int) -> None:
    """Raise DataError unless ``keep`` says something of every row."""
    if keep.shape != (count,):
        raise DataError(
            f"keep has shape {list(keep.shape)}, the dataset {count:,} rows",
            where="recdistill_lightning",
            fix="give one True or False for each row of the dataset",
        )
