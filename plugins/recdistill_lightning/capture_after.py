"""Capture from a teacher that is trained: allowed only for examples whose labels cannot have reached it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import torch

from recdistill_core.batch import Batch
from recdistill_core.errors import LeakError, UsageError
from recdistill_core.interfaces import CaptureMode, LabelVersion, LogitStore, SampleSource
from recdistill_core.ranks import from_first, rank_and_world
from recdistill_lightning.capture import rows_of_all
from recdistill_lightning.capture_versions import committed, require_not_revoked, told_what_to_do
from recdistill_lightning.modules import TeacherModule
from recdistill_lightning.shares import share_of
from recdistill_lightning.trained import TrainedExamples

__all__ = ["capture_after_training"]


def capture_after_training(
    module: TeacherModule,
    batches: Iterable[Batch],
    store: LogitStore,
    *,
    view: str,
    facts: Mapping[str, Any],
    source: SampleSource | None = None,
    trained: TrainedExamples | None = None,
    allow_leaky: bool = False,
    resume: bool = False,
) -> LabelVersion:
    """Score examples with a trained teacher and store the logits.

    The label of an example has reached a teacher that was trained on it, or on a later row of its user, whose history
    holds the label as an event. Such examples are refused, or, where ``allow_leaky``, the whole version is marked
    ``leaky``, as is every result that uses it.

    Where several processes have trained the teacher together all of them call this, with the same batches: each scores
    its share, and the first one writes.

    Args:
        module: the teacher. batches: what to score, whole batches. store: where to write.
        view: hash of the feature view. facts: for the label version, JSON-able.
        source: the dataset that the teacher was trained on and that ``batches`` come from; a teacher that reads
            histories needs it, as only the dataset tells which rows of a user are later ones.
        trained: examples the teacher was updated on before its weights were restored, beside ``module.trained``.
        allow_leaky: see above. resume: as in :class:`LogitCapture`.

    Raises:
        DataError: for a batch that breaks the contract: a NaN, an action that the dataset lacks, a future event.
        LeakError: for an example whose label has reached the teacher, without ``allow_leaky``; nothing is written.
        UsageError: without ``source``, for a teacher that reads histories; if the version's labels are revoked.
    """
    version = module.teacher.fingerprint()
    mode = CaptureMode.LEAKY if allow_leaky else CaptureMode.OUT_OF_FOLD
    again = require_not_revoked(store, version)
    earlier = from_first(committed(store, version, mode, facts) if resume else None)
    if earlier is not None:
        return earlier
    known = TrainedExamples(module.trained.ids())
    if trained is not None:
        known.add(trained.ids())
    if not allow_leaky:
        known = _all_reached(module, known, source)
    schema = None if source is None else source.schema
    first = rank_and_world()[0] == 0
    writer = store.writer(version, tasks=list(module.objectives), mode=mode, view=view, facts=facts) if first else None
    try:
        for batch in batches:
            batch.validate("batch to score", schema)  # an event that is not before its row would reach the label
            ids = batch.example_id.cpu()
            seen = known.known(ids.numpy())
            if seen.any() and not allow_leaky:
                raise LeakError(
                    f"{int(seen.sum())} of {len(seen)} examples of a batch, or later rows of their users, were trained "
                    "on by this teacher: scoring them now would put their labels into the logits",
                    where=f"example {int(ids[torch.from_numpy(seen)][0])}",
                    fix="capture while training (prequential) or out of fold; allowed explicitly it is marked leaky",
                )
            share = share_of(batch)
            ids, logits = rows_of_all(share, module.scores(share).logits)
            if writer is not None:
                with told_what_to_do(version, again):
                    writer.append(ids, logits, step=-1, scored_at=time.time_ns() // 1_000_000)
        # the first process has it, and the others get it
        return cast(LabelVersion, from_first(writer.commit() if writer is not None else None))
    except BaseException:
        if writer is not None:
            writer.abort()
        raise


def _all_reached(module: TeacherModule, trained: TrainedExamples, source: SampleSource | None) -> TrainedExamples:
    """Every example whose label can have reached the teacher."""
    if source is None:
        if module.history is not None and trained.ids().size:
            raise UsageError(
                "this teacher reads histories, and without its dataset nobody can tell whether it was trained on later "
                "rows of a user, whose histories hold the labels of the earlier ones",
                where="capture_after_training",
                fix="give source=, the dataset that the teacher was trained on",
            )
        return trained
    found = trained.reached(source, np.arange(source.num_rows))
    both = TrainedExamples(trained.ids())
    both.add(source.column("example_id")[found])
    return both
