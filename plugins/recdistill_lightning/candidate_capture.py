"""A teacher's logits of candidates, as they are before the update on the row that the candidates stand beside."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from recdistill_core.batch import Batch
from recdistill_core.fingerprint import digest
from recdistill_core.interfaces import CaptureMode, LabelVersion, LabelWriter, LogitStore
from recdistill_lightning.candidates import CandidateItems
from recdistill_lightning.capture_versions import committed, require_not_revoked
from recdistill_lightning.modules import TeacherModule


class CandidateCapture:
    """Writes the candidates of a fit into a version of their own, which names that of the rows.

    Args:
        store, resume: as for :class:`recdistill_lightning.LogitCapture`.

    Attributes:
        committed: the version of the candidates, once the fit has ended; None where there were none.
    """

    def __init__(self, store: LogitStore, resume: bool) -> None:
        self.store, self.resume = store, resume
        self.committed: LabelVersion | None = None
        self._writer: LabelWriter | None = None
        self._kept: int | None = None
        self._scored: tuple[Tensor, dict[str, Tensor]] | None = None

    def start(
        self, rows: str, tasks: Sequence[str], view: str, facts: Mapping[str, Any], candidates: CandidateItems
    ) -> None:
        """Open the version of the candidates beside the rows of version ``rows``."""
        self._kept = candidates.draw.per_row if candidates.draw.hard > 1 else None
        facts = {**facts, "candidates_of": rows, "candidates": candidates.describe()}
        version = digest([rows, facts["candidates"]]) + rows[-16:]
        require_not_revoked(self.store, version)
        self.committed = committed(self.store, version, CaptureMode.PREQUENTIAL, facts) if self.resume else None
        if self.committed is None:
            self._writer = self.store.writer(
                version, tasks=list(tasks), mode=CaptureMode.PREQUENTIAL, view=view, facts=facts
            )

    def score(self, module: TeacherModule, batch: Batch, around: AbstractContextManager[None]) -> None:
        """Score a batch's candidates with the weights as they are, in evaluation mode and without gradient.

        ``around`` is entered meanwhile: the precision of training.
        """
        self._scored = None
        if self._writer is not None and batch.candidates is not None:
            device = batch.event_time.device
            # whatever a teacher draws in evaluation must not move what its training draws
            with torch.random.fork_rng([device] if device.type == "cuda" else []), around:
                logits = module.scores(batch.candidates).logits
            ids = batch.candidates.example_id.cpu()
            found = {task: logits[task].float().cpu() for task in module.objectives}
            if self._kept is not None and batch.candidates.beside is not None:
                best = highest(found[module.task], batch.candidates.beside.cpu(), self._kept)
                ids, found = ids[best], {task: logit[best] for task, logit in found.items()}
            self._scored = ids, found

    def keep(self, step: int) -> None:
        """Write what was scored before the update of ``step``, which has been made by now."""
        if self._writer is not None and self._scored is not None:
            self._writer.append(*self._scored, step=step, scored_at=time.time_ns() // 1_000_000)
            self._scored = None

    def commit(self) -> None:
        """Make the labels visible."""
        if self._writer is not None:
            self.committed = self._writer.commit()
            self._writer = None

    def abort(self) -> None:
        """Leave nothing half-written."""
        if self._writer is not None:
            self._writer.abort()
            self._writer = None


def highest(logit: Tensor, beside: Tensor, count: int) -> Tensor:
    """``[M]`` places of the ``count`` highest of ``logit [N]`` among equal values of ``beside [N]``, in order.

    Of equal logits the first ones are taken.
    """
    order = torch.argsort(logit, descending=True, stable=True)
    order = order[torch.argsort(beside[order], stable=True)]  # a row's candidates together, the highest first
    _, sizes = torch.unique_consecutive(beside[order], return_counts=True)
    rank = torch.arange(len(order)) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    return order[rank < count].sort().values
