"""The data module: a dataset, a time split, a read order and, for students, the labels of one teacher version."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from recdistill_core.batch import Batch, TeacherSignal
from recdistill_core.errors import DataError
from recdistill_core.interfaces import HistoryWindow, LogitStore, SampleSource
from recdistill_lightning.order import ReadOrder, row_batches

__all__ = ["DistillationDataModule", "ReadOrder", "read_labels"]


class RowBatches(Dataset[Batch]):
    """``batches[rows]`` is the Batch of these row positions, with teacher labels where there are any."""

    def __init__(self, source: SampleSource, history: HistoryWindow | None, labels: TeacherSignal | None) -> None:
        self.source, self.history, self.labels = source, history, labels

    def __getitem__(self, rows: NDArray[np.int64]) -> Batch:
        batch = self.source.batch(rows, self.history)
        if self.labels is None:
            return batch
        index = torch.from_numpy(rows)
        return batch.with_teacher(
            replace(
                self.labels,
                logits={task: logit[index] for task, logit in self.labels.logits.items()},
                valid={task: valid[index] for task, valid in self.labels.valid.items()},
                scored_at=None if self.labels.scored_at is None else self.labels.scored_at[index],
            )
        )


class RowSampler(Sampler[NDArray[np.int64]]):
    """Yields the rows of one batch after another; every epoch has its own seeded order."""

    def __init__(self, source: SampleSource, start: int, stop: int, order: ReadOrder, seed: int) -> None:
        self.source, self.start, self.stop, self.order, self.seed = source, start, stop, order, seed
        self.epoch = 0
        self.length = sum(1 for _ in row_batches(source, start, stop, order, seed))

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return row_batches(self.source, self.start, self.stop, self.order, self.seed + 1_000_003 * self.epoch)

    def __len__(self) -> int:
        return self.length


class DistillationDataModule(L.LightningDataModule):
    """Batches of one dataset in time order.

    Args:
        source: the dataset.
        order: batch size and order of the training rows.
        train: ``(first, last + 1)`` row positions to train on; the whole dataset where None.
        test: row positions for validation, testing and prediction, read in strict time order.
        history: how much history each row needs; ``module.history`` of a teacher or student.
        labels: teacher labels of all rows of the dataset (see :func:`read_labels`), or None.
        seed: of the order inside windows.
    """

    def __init__(
        self,
        source: SampleSource,
        order: ReadOrder | None = None,
        *,
        train: tuple[int, int] | None = None,
        test: tuple[int, int] | None = None,
        history: HistoryWindow | None = None,
        labels: TeacherSignal | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.source, self.order, self.seed = source, order or ReadOrder(), seed
        self.train_rows = train or (0, source.num_rows)
        self.test_rows = test
        self.batches = RowBatches(source, history, labels)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Training rows in the read order."""
        return self._loader(self.train_rows, self.order)

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
        return self._loader(self.test_rows, replace(self.order, window_hours=0.0))

    def predict_dataloader(self) -> DataLoader[Batch]:
        """As :meth:`test_dataloader`."""
        return self.test_dataloader()

    def _loader(self, rows: tuple[int, int], order: ReadOrder) -> DataLoader[Batch]:
        sampler = RowSampler(self.source, rows[0], rows[1], order, self.seed)
        return DataLoader(self.batches, sampler=sampler, batch_size=None)


def read_labels(
    source: SampleSource, store: LogitStore, version: str, rows: tuple[int, int], min_coverage: float = 0.0
) -> tuple[TeacherSignal, dict[str, float]]:
    """Labels of one teacher version for every row of a dataset, in row order, and their coverage of ``rows`` by task.

    Raises:
        DataError: if the labels cover less than ``min_coverage`` of the training rows.
    """
    signal = store.read(version, source.column("example_id"))
    coverage = {task: float(valid[rows[0] : rows[1]].float().mean()) for task, valid in signal.valid.items()}
    for task, share in coverage.items():
        if share < min_coverage:
            raise DataError(
                f"labels of teacher {version} cover {share:.1%} of the training rows for task {task!r}, "
                f"less than the {min_coverage:.1%} asked for",
                where="logit store",
                fix="capture the missing rows, or lower min_coverage",
            )
    return signal, coverage
