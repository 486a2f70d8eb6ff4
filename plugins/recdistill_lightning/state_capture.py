"""Hidden states of a teacher beside its logits: from the same forward pass, before the update on the row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recdistill_core.batch import Batch
from recdistill_core.errors import LeakError, UsageError
from recdistill_core.interfaces import SampleSource
from recdistill_lightning.capture_checks import (
    first_sight,
    forwards,
    refuse_shuffling,
    require_new,
    require_one_pass,
)
from recdistill_lightning.data import DistillationDataModule
from recdistill_lightning.hidden import hidden_of
from recdistill_lightning.modules import TeacherModule
from recdistill_lightning.state_compressor import StateCompressor
from recdistill_lightning.states import States, joined, pack, require_shape
from recdistill_lightning.trained import TrainedExamples


class StateCapture(L.Callback):
    """Keeps the hidden state of :class:`TeacherModule`'s training forward passes, compressed, in memory.

    A row's state is of the teacher before the update on the row's batch, and of the compressor before its own step on
    it. The compressor learns to reconstruct states; nothing of it reaches the teacher, which trains as without it.
    Only first sights are kept, as in :class:`recdistill_lightning.LogitCapture`; training is in one process.
    Lightning's checkpoints hold nothing of it: a fit that goes on keeps the states of the rest, by a new compressor.

    Args:
        width, bits, lr: of the :class:`StateCompressor`.
        of: name of the activation in ``Scores.hidden``.
        seed: of the compressor; None: that of the Trainer's data module.
        warmup_steps: states of this many first steps are not kept; the compressor learns from them.

    Attributes:
        compressor: known once the first batch is trained. states: of the rows, once the fit has ended.

    Raises:
        UsageError: for settings out of range.
    """

    def __init__(
        self,
        width: int,
        bits: int = 4,
        *,
        of: str = "state",
        seed: int | None = None,
        lr: float = 1e-3,
        warmup_steps: int = 0,
    ) -> None:
        try:
            require_shape(width, bits)
            if not lr > 0 or warmup_steps < 0 or not of:
                raise ValueError(
                    f"lr must be > 0, warmup_steps >= 0 and of a name; got {lr}, {warmup_steps} and {of!r}"
                )
        except ValueError as error:
            raise UsageError(str(error), where="StateCapture") from error
        self.width, self.bits, self.of, self.seed, self.lr = width, bits, of, seed, lr
        self.warmup_steps = warmup_steps
        self.compressor: StateCompressor | None = None
        self.states: States | None = None
        self._kept: list[tuple[NDArray[np.int64], NDArray[np.uint8]]] = []
        self._before: TrainedExamples | None = None
        self._updates = self._forwards = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ask the module for its hidden activation."""
        if not isinstance(pl_module, TeacherModule):
            raise UsageError(
                f"StateCapture needs a TeacherModule, got {type(pl_module).__name__}",
                fix="wrap the teacher in recdistill_lightning.TeacherModule",
            )
        if trainer.world_size > 1:
            raise UsageError(
                "hidden states are kept in one process",
                where="lightning.Trainer(devices=...)",
                fix="leave StateCapture out, or train in one process",
            )
        refuse_shuffling(trainer)
        pl_module.hands_out = self.of
        self._before = None
        data = getattr(trainer, "datamodule", None)
        if self.seed is None:
            self.seed = data.seed if isinstance(data, DistillationDataModule) else 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Note how many updates and forward passes precede this batch."""
        self._updates, self._forwards = trainer.global_step, forwards(pl_module)
        if self._before is None and isinstance(pl_module, TeacherModule):  # whatever other callbacks have restored
            self._before = TrainedExamples(pl_module.trained.ids())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Keep the states that this step's forward pass gave, and let the compressor learn from them."""
        if not first_sight(trainer):
            return
        require_new(self._before or TrainedExamples(), batch, self._updates)
        require_one_pass(forwards(pl_module) - self._forwards, self._updates)
        hidden: Tensor = outputs["hidden"].flatten(1)
        if self.compressor is None:
            made = StateCompressor(hidden.shape[1], self.width, self.bits, seed=self.seed or 0, lr=self.lr)
            self.compressor = made.to(hidden.device)
        if self._updates >= self.warmup_steps:
            self._kept.append((batch.example_id.cpu().numpy(), packed(self.compressor, hidden)))
        self.compressor.learn(hidden)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the states together."""
        self._release(pl_module)
        if self.compressor is not None:
            self.states = _together(self._kept, self.compressor, after_training=False)
            self._kept = []

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the module as it was."""
        self._release(pl_module)

    def _release(self, module: L.LightningModule) -> None:
        if isinstance(module, TeacherModule):
            module.hands_out = ""


def packed(compressor: StateCompressor, hidden: Tensor) -> NDArray[np.uint8]:
    """``[N, H]`` activations as packed states ``[N, bytes]``."""
    # Lightning brings the teacher back to the CPU as a fit ends, and leaves a callback's modules where they are
    return pack(compressor.codes(hidden.to(compressor.encoder.device)).cpu().numpy(), compressor.bits)


def states_after_training(
    module: TeacherModule,
    batches: Iterable[Batch],
    source: SampleSource,
    compressor: StateCompressor,
    of: str = "state",
) -> States:
    """States of rows that the trained teacher has not been trained on, nor on later rows of their users.

    Args:
        module: the teacher. batches: of ``source``, with the history that it asks for.
        compressor: as the capture left it. of: name of the activation.

    Raises:
        LeakError: for a row whose label has reached the teacher.
    """
    reached = module.trained.reached(source, np.arange(source.num_rows))
    known = TrainedExamples(source.column("example_id")[reached])
    known.add(module.trained.ids())
    kept = []
    for batch in batches:
        ids = batch.example_id.cpu().numpy()
        seen = known.known(ids)
        if seen.any():
            raise LeakError(
                f"{int(seen.sum())} of {len(seen)} examples of a batch, or later rows of their users, were trained on "
                "by this teacher: its state would know their labels",
                where=f"example {int(ids[seen][0])}",
                fix="keep the states of these rows while the teacher trains (StateCapture)",
            )
        hidden = hidden_of(module.teacher, module.scores(batch), of, len(batch))
        kept.append((ids, packed(compressor, hidden.flatten(1))))
    return _together(kept, compressor, after_training=True)


def states_with_later(
    capture: StateCapture,
    module: TeacherModule,
    batches: Iterable[Batch],
    source: SampleSource,
    facts: Mapping[str, Any],
) -> States:
    """What a capture has kept, and the states of later rows beside them.

    Args:
        capture: after the fit of ``module``. batches: the later rows of ``source``.
        facts: noted beside the dataset's snapshot and the activation's name.
    """
    if capture.states is None or capture.compressor is None:
        raise UsageError(
            "the capture has kept no states",
            where="StateCapture",
            fix="fit a TeacherModule with it among the Trainer's callbacks first",
        )
    later = states_after_training(module, batches, source, capture.compressor, capture.of)
    noted = {"dataset": source.snapshot_id, "of": capture.of, **facts}
    return joined([States(**{**vars(capture.states), "facts": noted}), later])


def _together(
    kept: list[tuple[NDArray[np.int64], NDArray[np.uint8]]], compressor: StateCompressor, *, after_training: bool
) -> States:
    width, bits = compressor.width, compressor.bits
    none = (np.empty(0, np.int64), np.empty((0, -(-width * bits // 8)), np.uint8))
    ids, codes = (np.concatenate(parts) for parts in zip(none, *kept, strict=True))
    return States(ids, codes, np.full(len(ids), after_training), width, bits)
