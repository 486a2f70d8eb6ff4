"""Prequential capture: each example's logit from the training forward pass, before the update on it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray

from recdistill_core.batch import Batch
from recdistill_core.errors import IntegrityError, LeakError, UsageError
from recdistill_core.fingerprint import digest
from recdistill_core.interfaces import CaptureMode, LabelVersion, LabelWriter, LogitStore
from recdistill_lightning.data import DistillationDataModule
from recdistill_lightning.modules import TeacherModule


class TrainedExamples:
    """Ids of the examples a teacher has been updated on; 8 bytes each, saved beside its weights."""

    def __init__(self, ids: NDArray[np.int64] | None = None) -> None:
        self._sorted = np.unique(ids) if ids is not None else np.empty(0, np.int64)
        self._new: list[NDArray[np.int64]] = []

    def add(self, ids: NDArray[np.int64]) -> None:
        """Note that the teacher has been updated on ``ids [N]``."""
        self._new.append(np.array(ids, dtype=np.int64))

    def ids(self) -> NDArray[np.int64]:
        """``[M]`` ascending."""
        if self._new:
            self._sorted = np.unique(np.concatenate([self._sorted, *self._new]))
            self._new = []
        return self._sorted

    def known(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """``[N]`` True where the example has been trained on."""
        have = self.ids()
        place = np.minimum(np.searchsorted(have, ids), max(len(have) - 1, 0))
        return have[place] == ids if len(have) else np.zeros(len(ids), np.bool_)

    def save(self, path: Path) -> None:
        """Write a ``.npy`` file."""
        np.save(path, self.ids(), allow_pickle=False)

    @classmethod
    def load(cls, path: Path) -> TrainedExamples:
        """Read a ``.npy`` file. Raises IntegrityError where it is absent or damaged."""
        try:
            return cls(np.load(path, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise IntegrityError(
                "the list of examples this teacher was trained on cannot be read",
                where=str(path),
                fix="train the teacher again: without the list no capture can be shown to be free of leaks",
            ) from error


class LogitCapture(L.Callback):
    """Writes the logits of :class:`TeacherModule`'s training forward passes into a logit store.

    Only first sights are captured: the first pass over each phase (see ``Phases``), and no example that the teacher was
    trained on in an earlier fit.

    Args:
        store: where to write.
        snapshot: id of the dataset, part of the version.
        view: hash of the feature view.
        seed: part of the version.
        warmup_steps: logits of this many first steps are not captured; a cold teacher's labels are poor.
        trained: examples the teacher has been updated on before this fit.
        facts: further facts for the label version.
        write: False only keeps the list of trained-on examples and writes no label.

    Attributes:
        version: the teacher version, known once the fit has started.
        committed: the label version, known once the fit has ended.
    """

    def __init__(
        self,
        store: LogitStore,
        *,
        snapshot: str,
        view: str,
        seed: int = 0,
        warmup_steps: int = 0,
        trained: TrainedExamples | None = None,
        facts: Mapping[str, Any] | None = None,
        write: bool = True,
    ) -> None:
        if warmup_steps < 0:
            raise UsageError(f"warmup_steps must be >= 0, got {warmup_steps}")
        self.store, self.snapshot, self.view, self.seed = store, snapshot, view, seed
        self.warmup_steps = warmup_steps
        self.trained = trained or TrainedExamples()
        self._before = TrainedExamples(self.trained.ids())
        self.facts, self.write = dict(facts or {}), write
        self.version = ""
        self.committed: LabelVersion | None = None
        self._writer: LabelWriter | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Name the version after the teacher before its first update, the data and the seed."""
        if not isinstance(pl_module, TeacherModule):
            raise UsageError(
                f"LogitCapture needs a TeacherModule, got {type(pl_module).__name__}",
                fix="wrap the teacher in recdistill_lightning.TeacherModule",
            )
        start = pl_module.teacher.fingerprint()
        self.version = digest([start, self.snapshot, self.seed, self.warmup_steps]) + start[:16]
        if not self.write:
            return
        facts = {"dataset": self.snapshot, "seed": self.seed, "teacher_at_start": start, **self.facts}
        self._writer = self.store.writer(
            self.version,
            tasks=list(pl_module.objectives),
            mode=CaptureMode.PREQUENTIAL,
            view=self.view,
            facts=facts,
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Keep the logits that this step's forward pass gave, and note that the examples are trained on now."""
        ids = batch.example_id.cpu()
        if self._writer is not None and self._first_sight(trainer):
            seen = self._before.known(ids.numpy())
            if seen.any():
                raise LeakError(
                    f"{int(seen.sum())} examples of this batch were trained on in an earlier fit",
                    where=f"example {int(ids[torch.from_numpy(seen)][0])}, step {trainer.global_step}",
                    fix="capture only examples that are new to the teacher",
                )
            logits = {task: logit.float().cpu() for task, logit in outputs["logits"].items()}
            self._writer.append(ids, logits, step=trainer.global_step - 1, scored_at=time.time_ns() // 1_000_000)
        self.trained.add(ids.numpy())

    def _first_sight(self, trainer: L.Trainer) -> bool:
        data = getattr(trainer, "datamodule", None)
        epoch = trainer.current_epoch
        first = data.phases.first_sight(epoch) if isinstance(data, DistillationDataModule) else epoch == 0
        return first and trainer.global_step > self.warmup_steps

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the labels visible."""
        if self._writer is not None and not trainer.interrupted:
            self.committed = self._writer.commit()
            self._writer = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave nothing half-written."""
        if self._writer is not None:
            self._writer.abort()
            self._writer = None


def capture_after_training(
    module: TeacherModule,
    batches: Sequence[Batch] | Any,
    store: LogitStore,
    *,
    trained: TrainedExamples,
    view: str,
    facts: Mapping[str, Any],
    allow_leaky: bool = False,
) -> LabelVersion:
    """Score examples with a trained teacher and store the logits.

    Examples that the teacher was trained on carry their own label into the logit, so they are refused, or, where
    ``allow_leaky``, the whole version is marked ``leaky``, as is every result that uses it.

    Raises:
        LeakError: for a trained-on example without ``allow_leaky``; nothing is written.
    """
    version = module.teacher.fingerprint()
    mode = CaptureMode.LEAKY if allow_leaky else CaptureMode.OUT_OF_FOLD
    writer = store.writer(version, tasks=list(module.objectives), mode=mode, view=view, facts=facts)
    try:
        for batch in batches:
            ids = batch.example_id.cpu()
            seen = trained.known(ids.numpy())
            if seen.any() and not allow_leaky:
                raise LeakError(
                    f"{int(seen.sum())} of {len(seen)} examples of a batch were trained on by this teacher: scoring "
                    "them now would put their labels into the logits",
                    where=f"example {int(ids[torch.from_numpy(seen)][0])}",
                    fix="capture while training (prequential), or allow it explicitly; it is then marked leaky",
                )
            logits = {task: logit.float().cpu() for task, logit in module.teacher.score(batch).logits.items()}
            writer.append(ids, logits, step=-1, scored_at=time.time_ns() // 1_000_000)
        return writer.commit()
    except BaseException:
        writer.abort()
        raise
