"""Which rows a training step reads, and the batch made of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, DistributedSampler

from recdistill_core.batch import Batch, Share, TeacherSignal
from recdistill_core.errors import UsageError
from recdistill_core.interfaces import HistoryWindow, SampleSource
from recdistill_lightning.candidates import CandidateItems, CandidateLabels
from recdistill_lightning.order import ReadOrder, row_batches
from recdistill_lightning.shares import Dealt, deal


class RowBatches(Dataset[Batch]):
    """``batches[rows]`` is the Batch of these row positions, with teacher labels and candidates where there are any.

    Of a batch that several processes share it is this one's part, which knows the ids of the whole.
    """

    def __init__(
        self,
        source: SampleSource,
        history: HistoryWindow | None,
        labels: TeacherSignal | None,
        candidates: CandidateItems | CandidateLabels | None = None,
    ) -> None:
        self.source, self.history, self.labels, self.candidates = source, history, labels, candidates

    def __getitem__(self, rows: NDArray[np.int64] | Dealt) -> Batch:
        if isinstance(rows, Dealt):
            ids = torch.from_numpy(self.source.column("example_id")[rows.whole].astype(np.int64))
            return replace(self[rows.rows], share=Share(ids, rows.processes, rows.idle))
        batch = read_batch(self.source, rows, self.history)
        if self.labels is not None:
            batch = batch.with_teacher(labels_at(self.labels, rows))
        return batch if self.candidates is None else replace(batch, candidates=self._beside(rows))

    def _beside(self, rows: NDArray[np.int64]) -> Batch | None:
        if isinstance(self.candidates, CandidateItems):
            found = self.candidates.batch(rows, self.history)
            return None if found is None else found[0]
        return None if self.candidates is None else self.candidates.batch(rows, self.history)


def read_batch(source: SampleSource, rows: NDArray[np.int64], history: HistoryWindow | None) -> Batch:
    """The impressions at ``rows [N]``. Raises DataError where the source breaks the contract of a batch."""
    return source.batch(rows, history).validate(schema=source.schema)


def labels_at(labels: TeacherSignal, rows: NDArray[np.int64]) -> TeacherSignal:
    """Labels of the row positions ``rows [N]``, copied out of those of all rows."""
    index = torch.from_numpy(rows)
    return labels.map(lambda column: column.index_select(0, index))


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


class RowSampler(DistributedSampler[NDArray[np.int64] | Dealt]):
    """Yields the rows of one batch after another; every epoch has its own rows and seeded order.

    It has no length: Lightning would keep the first epoch's for all. It has nothing of a ``DistributedSampler`` but
    the name, by which Lightning knows that the rows are dealt to processes already, and must not be dealt again.

    Args:
        source, phases, order, seed, keep: as for the data module.
        part: number of this process, and how many share every batch.
        after: ``(epoch, batches)``: the epoch to begin with, and how many batches of it an earlier fit has read.
    """

    def __init__(
        self,
        source: SampleSource,
        phases: Phases,
        order: ReadOrder,
        seed: int,
        keep: NDArray[np.bool_] | None = None,
        *,
        part: tuple[int, int] = (0, 1),
        after: tuple[int, int] = (0, 0),
    ) -> None:
        self.source, self.order, self.seed, self.keep = source, order, seed, keep
        self.part, self.after = part, after
        self.passes = phases.passes()
        self.epoch = after[0]  # a fit that goes on asks for the first batch before it calls set_epoch

    def __len__(self) -> int:
        raise TypeError("epochs differ in their number of batches")

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[NDArray[np.int64] | Dealt]:
        if self.epoch >= len(self.passes):
            raise UsageError(
                f"epoch {self.epoch + 1} was asked for, the schedule has {len(self.passes)}",
                where="lightning.Trainer(max_epochs=...)",
                fix="set max_epochs=data.epochs, or more batch_epochs",
            )
        start, stop = self.passes[self.epoch]
        batches = row_batches(self.source, start, stop, self.order, self.seed + 1_000_003 * self.epoch, self.keep)
        done = self.after[1] if self.epoch == self.after[0] else 0
        return dealt(self.source, itertools.islice(batches, done, None), self.part)


class FixedRows(DistributedSampler[NDArray[np.int64] | Dealt]):
    """The same batches in every epoch; see :class:`RowSampler` for its base."""

    def __init__(self, batches: Iterable[NDArray[np.int64] | Dealt]) -> None:
        self.batches = list(batches)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[NDArray[np.int64] | Dealt]:
        return iter(self.batches)


def dealt(
    source: SampleSource, batches: Iterable[NDArray[np.int64]], part: tuple[int, int]
) -> Iterator[NDArray[np.int64] | Dealt]:
    """Batches of row positions, or what process ``part[0]`` of ``part[1]`` has of each."""
    if part[1] == 1:
        yield from batches
        return
    users, requests = source.column("user_id"), source.column("request_id")
    for rows in batches:
        yield deal(rows, users[rows], requests[rows], *part)
