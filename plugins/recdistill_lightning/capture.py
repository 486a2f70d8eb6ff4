"""Prequential capture: each example's logit from the training forward pass, before the update on it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from recdistill_core.batch import Batch
from recdistill_core.errors import UsageError
from recdistill_core.fingerprint import digest
from recdistill_core.interfaces import CaptureMode, LabelVersion, LabelWriter, LogitStore
from recdistill_core.ranks import from_first, rows_of_all_ranks
from recdistill_lightning.candidate_capture import CandidateCapture
from recdistill_lightning.candidates import CandidateItems
from recdistill_lightning.capture_checks import (
    first_sight,
    forwards,
    refuse_shuffling,
    require_new,
    require_one_pass,
)
from recdistill_lightning.capture_versions import committed, require_not_revoked, told_what_to_do
from recdistill_lightning.data import DistillationDataModule
from recdistill_lightning.modules import TeacherModule
from recdistill_lightning.trained import TrainedExamples

__all__ = ["LogitCapture", "TrainedExamples"]


class LogitCapture(L.Callback):
    """Writes the logits of :class:`TeacherModule`'s training forward passes into a logit store.

    Only first sights are captured: the first pass over each phase (see ``Phases``), and no example that the teacher was
    trained on in an earlier fit. Where several processes train together the first one writes, what all of them have.

    Args:
        store: where to write.
        snapshot: id of the dataset, part of the version; None: that of the Trainer's data module.
        view: hash of the feature view; None: that of the Trainer's data module.
        seed: part of the version; None: that of the Trainer's data module.
        warmup_steps: logits of this many first steps are not captured; a cold teacher's labels are poor.
        trained: examples the teacher was updated on before its weights were restored; a :class:`TeacherModule`
            remembers by itself what it was trained on since.
        facts: further facts for the label version, JSON-able; part of the version, so say here what else makes the
            labels, such as the configuration of debiasers.
        resume: where an earlier attempt with the same facts has committed this version already (and was interrupted
            before its weights were safe), let those labels stand and write none; False refuses with a LeakError.

    Attributes:
        version: the teacher version, known once the fit has started.
        committed: the label version, known once the fit has ended.
        candidates: likewise for candidates, ``candidates.committed``.

    Where the data module has candidates (:class:`recdistill_lightning.CandidateItems`), they are scored just before the
    update on their row, and get a version of their own.
    """

    def __init__(
        self,
        store: LogitStore,
        *,
        snapshot: str | None = None,
        view: str | None = None,
        seed: int | None = None,
        warmup_steps: int = 0,
        trained: TrainedExamples | None = None,
        facts: Mapping[str, Any] | None = None,
        resume: bool = False,
    ) -> None:
        if warmup_steps < 0:
            raise UsageError(f"warmup_steps must be >= 0, got {warmup_steps}")
        self.store, self.snapshot, self.view, self.seed = store, snapshot, view, seed
        self.warmup_steps, self.resume = warmup_steps, resume
        self.facts = dict(facts or {})
        self.version = ""
        self.committed: LabelVersion | None = None
        self._restored = trained or TrainedExamples()
        self._before = TrainedExamples()
        self._writer: LabelWriter | None = None
        self.candidates = CandidateCapture(store, resume)
        self._again = self._capturing = False
        self._updates = self._forwards = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Name the version after what makes the labels: the teacher before its first update, data, schedule, facts."""
        if not isinstance(pl_module, TeacherModule):
            raise UsageError(
                f"LogitCapture needs a TeacherModule, got {type(pl_module).__name__}",
                fix="wrap the teacher in recdistill_lightning.TeacherModule",
            )
        refuse_shuffling(trainer)
        snapshot, view, seed = self._data_facts(trainer)
        pl_module.trained.add(self._restored.ids())
        self._before = TrainedExamples(pl_module.trained.ids())
        start = pl_module.teacher.fingerprint()
        schedule = [pl_module.optimisation, *_reading(trainer)]
        plain = [asdict(part) if is_dataclass(part) and not isinstance(part, type) else part for part in schedule]
        self.version = digest([start, snapshot, seed, self.warmup_steps, self.facts, plain]) + start[:16]
        facts = {"dataset": snapshot, "seed": seed, "teacher_at_start": start, **self._until(trainer), **self.facts}
        self._again = require_not_revoked(self.store, self.version)
        found = committed(self.store, self.version, CaptureMode.PREQUENTIAL, facts) if self.resume else None
        self.committed = from_first(found)
        self._capturing = self.committed is None
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, DistillationDataModule) and isinstance(data.candidates, CandidateItems):
            self.candidates.start(self.version, list(pl_module.objectives), view, facts, data.candidates)
        if self._capturing and trainer.is_global_zero:
            self._writer = self.store.writer(
                self.version, tasks=list(pl_module.objectives), mode=CaptureMode.PREQUENTIAL, view=view, facts=facts
            )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Note how many updates and forward passes precede this batch."""
        self._updates, self._forwards = trainer.global_step, forwards(pl_module)
        if self._updates >= self.warmup_steps and first_sight(trainer) and isinstance(pl_module, TeacherModule):
            self.candidates.score(pl_module, batch, trainer.precision_plugin.forward_context())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Keep the logits that this step's forward pass gave."""
        with told_what_to_do(self.version, self._again):
            self.candidates.keep(self._updates)
        if not self._capturing or self._updates < self.warmup_steps or not first_sight(trainer):
            return
        require_new(self._before, batch, self._updates)
        require_one_pass(forwards(pl_module) - self._forwards, self._updates)
        ids, logits = rows_of_all(batch, outputs["logits"])
        if self._writer is not None:
            with told_what_to_do(self.version, self._again):
                self._writer.append(ids, logits, step=self._updates, scored_at=_now())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the labels visible, once every process has come to the end."""
        trainer.strategy.barrier()
        self.candidates.commit()
        if self._writer is not None:
            self.committed = self._writer.commit()
            self._writer = None
        self.committed = from_first(self.committed)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave nothing half-written."""
        self.candidates.abort()
        if self._writer is not None:
            self._writer.abort()
            self._writer = None

    def _until(self, trainer: L.Trainer) -> dict[str, int]:
        """The newest event that the teacher has seen before its first capture; for a new one, that capture's own."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, DistillationDataModule):
            return {}
        until = self._before.until(data.source)
        return {"trained_until": int(data.source.column("event_time")[data.phases.start]) if until is None else until}

    def _data_facts(self, trainer: L.Trainer) -> tuple[str, str, int]:
        """Snapshot, view and seed: as given, else those of the data module."""
        snapshot, view, seed = self.snapshot, self.view, self.seed
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, DistillationDataModule):
            snapshot = data.source.snapshot_id if snapshot is None else snapshot
            view = data.source.schema.view_hash() if view is None else view
            seed = data.seed if seed is None else seed
        if snapshot is None or view is None:
            raise UsageError(
                "LogitCapture knows neither the dataset nor its feature view",
                where="lightning.Trainer.fit",
                fix="fit with datamodule=DistillationDataModule(...), or give snapshot and view",
            )
        return snapshot, view, seed or 0


def rows_of_all(batch: Batch, logits: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Example ids ``[G]`` and logits ``{task: [G]}`` float32 on the CPU of the batch of all processes.

    ``logits {task: [N]}`` are this process's. Every process must call it.
    """
    ids, plain = batch.example_id.cpu(), {task: logit.float().cpu() for task, logit in logits.items()}
    if batch.share is None:
        return ids, plain
    # one message: a float32 is carried as its 32 bits in an int64
    columns = [ids, *(logit.contiguous().view(torch.int32).long() for logit in plain.values())]
    mine = torch.stack(columns, dim=1)
    found = rows_of_all_ranks(mine[:0] if batch.share.idle else mine)
    bits = found[:, 1:].to(torch.int32).unbind(dim=1)
    gathered = {task: column.contiguous().view(torch.float32) for task, column in zip(plain, bits, strict=True)}
    return found[:, 0].contiguous(), gathered


def _reading(trainer: L.Trainer) -> list[Any]:
    """Read order and phases, where the Trainer's data module has them."""
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, DistillationDataModule):
        return []
    kept = [] if data.keep is None else [digest(np.packbits(data.keep).tobytes().hex())]
    return [data.order, data.phases, *kept]


def _now() -> int:
    return time.time_ns() // 1_000_000
