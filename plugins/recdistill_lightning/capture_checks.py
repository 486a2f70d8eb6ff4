"""What must hold for the forward pass of a training step to be one that precedes the teacher's update on its rows."""

from __future__ import annotations

import lightning as L
import torch

from recdistill_core.batch import Batch
from recdistill_core.errors import LeakError
from recdistill_lightning.data import DistillationDataModule
from recdistill_lightning.modules import TeacherModule
from recdistill_lightning.order import SHUFFLED
from recdistill_lightning.trained import TrainedExamples


def first_sight(trainer: L.Trainer) -> bool:
    """Whether this epoch reads rows that no earlier one has read."""
    data = getattr(trainer, "datamodule", None)
    epoch = trainer.current_epoch
    return data.phases.first_sight(epoch) if isinstance(data, DistillationDataModule) else epoch == 0


def refuse_shuffling(trainer: L.Trainer) -> None:
    """A later row's history holds the label of the rows before it, so a user's rows must be read in time order."""
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, DistillationDataModule) and data.order.within in SHUFFLED and data.order.window_hours > 0:
        raise LeakError(
            "in a shuffled window the teacher could be trained on a later row of a user, whose history holds the label "
            "of a row that is captured only then",
            where=f"ReadOrder(within={data.order.within!r})",
            fix="read the teacher's rows with within='user' or 'time'",
        )


def require_new(before: TrainedExamples, batch: Batch, step: int) -> None:
    """Raise LeakError for a row that was trained on ``before`` this fit."""
    # the ids of all processes, so that all of them refuse, and none is left waiting for the others
    ids = batch.example_id.cpu() if batch.share is None else batch.share.ids
    seen = before.known(ids.numpy())
    if seen.any():
        raise LeakError(
            f"{int(seen.sum())} examples of this batch were trained on in an earlier fit",
            where=f"example {int(ids[torch.from_numpy(seen)][0])}, step {step}",
            fix="capture only examples that are new to the teacher",
        )


def require_one_pass(passes: int, step: int) -> None:
    """Raise LeakError where a step ran several forward passes over its batch."""
    if passes != 1:
        raise LeakError(
            f"the optimizer ran {passes} forward passes over one batch; only the first precedes the update",
            where=f"step {step}",
            fix="use an optimizer that needs one pass, such as Adam",
        )


def forwards(module: L.LightningModule) -> int:
    """Training forward passes of a teacher so far."""
    return module.forwards if isinstance(module, TeacherModule) else 0
