"""A teacher's id embeddings as they are before it has learnt from any row of its students."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from recdistill_core.batch import Batch
from recdistill_core.errors import DataError, LeakError, UsageError
from recdistill_core.interfaces import SampleSource, TrainableTeacher
from recdistill_core.schema import ITEM
from recdistill_lightning.embeddings import Entities, IdEmbeddings
from recdistill_lightning.modules import TeacherModule

#: Rows that are read at once where an earlier fit has trained on them.
ROWS = 8192


class EmbeddingSnapshot(L.Callback):
    """Keeps a copy of the teacher's id embeddings: those before the update on the first batch with a row at or after a
    time.

    An embedding that was trained on a row has seen its label. A student may learn from embeddings only what was in them
    before the first of its own rows. One callback is for one teacher, in however many fits.

    Args:
        source: the dataset. kinds: ``item``, or names of categorical features.
        before: ms UTC, time of the students' first row; None: the end of training, when they have seen all labels.

    Attributes:
        taken: the copy, once there is one. updates: how many updates of the teacher precede it.
    """

    def __init__(self, source: SampleSource, kinds: Sequence[str] = (ITEM,), *, before: int | None) -> None:
        self.source, self.entities, self.before = source, Entities(source.schema, kinds), before
        self.taken: IdEmbeddings | None = None
        self.updates = 0
        self._seen: dict[str, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin anew, unless the teacher goes on from an earlier fit or from a checkpoint.

        Raises:
            UsageError: for another module than a teacher's, or in several processes.
            LeakError: if the teacher has been trained on such rows before this fit.
        """
        if not isinstance(pl_module, TeacherModule) or trainer.world_size > 1:
            raise UsageError(
                "EmbeddingSnapshot is for a TeacherModule that is trained in one process",
                where="lightning.Trainer.fit",
                fix="wrap the teacher in recdistill_lightning.TeacherModule, or train in one process",
            )
        until = pl_module.trained.until(self.source)
        if self.taken is None and self.before is not None and until is not None and until >= self.before:
            raise LeakError(
                "the teacher has been trained on rows of the students in an earlier fit, and its embeddings have seen "
                "their labels",
                where=f"EmbeddingSnapshot(before={self.before}); trained until {until}",
                fix="train the teacher anew, or take its embeddings in the fit that reads these rows first",
            )
        if not self._seen or not pl_module.trained.ids().size:
            self.taken, self.updates = None, 0
            self._seen = {kind: torch.zeros(size, dtype=torch.bool) for kind, size in self.entities.sizes.items()}
            rows = np.flatnonzero(np.isin(self.source.column("example_id"), pl_module.trained.ids()))
            for start in range(0, len(rows), ROWS):
                self._note(self.source.batch(rows[start : start + ROWS]))

    def state_dict(self) -> dict[str, Any]:
        """The ids that were seen and the copy, where there is one, for Lightning's checkpoints."""
        taken = None if self.taken is None else dict(self.taken.tables)
        return {"seen": dict(self._seen), "taken": taken, "updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._seen, self.updates = dict(state_dict["seen"]), int(state_dict["updates"])
        self.taken = None if state_dict["taken"] is None else IdEmbeddings(state_dict["taken"], self._seen)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Take the copy where this is the batch. Raises UsageError where nothing was trained before it."""
        if self.before is None or self.taken is not None or not bool((batch.event_time >= self.before).any()):
            return
        if not trainer.global_step and not (isinstance(pl_module, TeacherModule) and pl_module.trained.ids().size):
            raise UsageError(
                "the teacher's first batch holds rows of the students: its embeddings are not trained by then",
                where=f"EmbeddingSnapshot(before={self.before})",
                fix="let the students start later, or the teacher earlier; smaller batches or windows help where it is "
                "a matter of one batch",
            )
        self._take(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Note which ids the teacher has been trained on: those of the rows, and items of their histories."""
        if self.taken is None:
            self._note(batch)

    def _note(self, batch: Batch) -> None:
        for kind, seen in self._seen.items():
            seen[self.entities.ids(batch, kind).cpu()] = True
        if ITEM in self._seen and batch.history is not None:
            items = batch.history.events["item"].cpu()
            self._seen[ITEM][items[(items >= 0) & (items < self.entities.sizes[ITEM])]] = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the copy now where no row of the students came."""
        if self.taken is None:
            self._take(trainer, pl_module)

    def _take(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TeacherModule)
        tables = {kind: teacher_table(module.teacher, kind, size) for kind, size in self.entities.sizes.items()}
        self.taken, self.updates = IdEmbeddings(tables, self._seen), trainer.global_step


def teacher_table(teacher: TrainableTeacher, kind: str, size: int) -> Tensor:
    """``[size, W]`` float32 on the CPU, a copy. Raises DataError where the teacher has no embedding of this kind."""
    device = next(iter(teacher.parameters())).device
    with torch.no_grad():
        found = teacher.id_embedding(kind, torch.arange(size, device=device))
    if found is None:
        raise DataError(
            f"{type(teacher).__name__} has no embedding of kind {kind!r}",
            where=f"{type(teacher).__module__}: id_embedding",
            fix="name other kinds, or implement id_embedding: [M] ids -> [M, W]",
        )
    return found.detach().float().cpu().clone()
