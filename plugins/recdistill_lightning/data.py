"""The data module: a dataset, a time split, a read order and, for students, the labels of one teacher version."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from recdistill_core.batch import Batch, TeacherSignal
from recdistill_core.errors import DataError, UsageError
from recdistill_core.interfaces import HistoryWindow, LogitStore, SampleSource
from recdistill_core.label_choice import choose_labels
from recdistill_core.labels import AlignedLabels, AlignedStore, LabelChoice
from recdistill_lightning.candidates import CandidateItems, CandidateLabels
from recdistill_lightning.order import ReadOrder, row_batches
from recdistill_lightning.rows import FixedRows, Phases, RowBatches, RowSampler, dealt, read_batch

__all__ = ["DistillationDataModule", "ReadOrder", "align_labels", "read_labels"]


class DistillationDataModule(L.LightningDataModule):
    """Batches of one dataset in time order.

    Where several processes train together each has its share of every batch, and the batches are those of one process:
    same rows, same order, same number of steps. It keeps its place: a fit that goes on from a checkpoint in the midst
    of an epoch reads the rest of it.

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
        candidates: items that were not shown beside the training rows: bare for a teacher that is to score them, with
            labels for a student that is to learn from them; None: none.
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
        candidates: CandidateItems | CandidateLabels | None = None,
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
        self.candidates = candidates
        self._after = (0, 0)

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
        """This process's share of the training batches, in the read order."""
        order, keep, part = self.order, self.keep, self._part()
        if self.candidates is not None and part[1] > 1:
            raise UsageError(
                "candidates beside the rows are for training in one process",
                where="DistillationDataModule(candidates=...)",
                fix="leave them out, or train in one process",
            )
        after, self._after = self._after, (0, 0)  # of the fit that goes on, not of a later one
        sampler = RowSampler(self.source, self.phases, order, self.seed, keep, part=part, after=after)
        batches = RowBatches(self.source, self.batches.history, self.batches.labels, self.candidates)
        return DataLoader(batches, sampler=sampler, batch_size=None)

    def state_dict(self) -> dict[str, Any]:
        """How far the training rows are read, for Lightning's checkpoints."""
        if self.trainer is None:
            return {}
        epochs: Any = self.trainer.fit_loop.epoch_progress.current
        batches: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        if epochs.ready <= epochs.processed or batches.is_last_batch:  # between two epochs
            return {"epoch": max(epochs.ready, epochs.processed), "batches": 0}
        return {"epoch": epochs.processed, "batches": batches.current.processed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the rows that were read before the checkpoint."""
        self._after = (int(state_dict.get("epoch", 0)), int(state_dict.get("batches", 0)))

    def training_batches(self) -> Iterator[Batch]:
        """Every training row once, in the read order, without teacher labels; for debiasers that must look first."""
        phases = self.phases
        for rows in row_batches(self.source, phases.start, phases.stop, self.order, self.seed, self.keep):
            yield read_batch(self.source, rows, self.batches.history)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """The test rows, or nothing where there are none."""
        return self.test_dataloader() if self.test_rows else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """This process's share of the test rows, in strict time order.

        Raises:
            DataError: if the data module has no test rows.
        """
        return self._test_loader(self._part())

    def predict_dataloader(self) -> DataLoader[Batch]:
        """All test rows in strict time order, in every process: what is predicted is not gathered."""
        return self._test_loader((0, 1))

    def _test_loader(self, part: tuple[int, int]) -> DataLoader[Batch]:
        if self.test_rows is None:
            raise DataError("this data module has no test rows", fix="give test=(first, last + 1)")
        first, last = self.test_rows
        batches = row_batches(self.source, first, last, replace(self.order, window_hours=0.0), 0)
        # one pass, whatever the training epoch: a range of its own that every epoch reads
        return DataLoader(self.batches, sampler=FixedRows(dealt(self.source, batches, part)), batch_size=None)

    def _part(self) -> tuple[int, int]:
        """The number of this process, and how many share every batch.

        Raises:
            UsageError: if several processes hold parts of one copy of the model and so must read the same rows.
        """
        if self.trainer is None or self.trainer.world_size == 1:
            return 0, 1
        copies = (self.trainer.distributed_sampler_kwargs or {}).get("num_replicas", self.trainer.world_size)
        if copies != self.trainer.world_size:
            raise UsageError(
                f"the strategy makes {copies} copies of the model in {self.trainer.world_size} processes, and the data "
                "module deals its rows to all of them",
                where="lightning.Trainer(strategy=...)",
                fix="use 'ddp' or recdistill_lightning.FSDP2Strategy(); tensor parallelism is not supported",
            )
        return self.trainer.global_rank, self.trainer.world_size


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
