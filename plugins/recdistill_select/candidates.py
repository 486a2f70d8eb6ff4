"""Examples of a run as its raw student sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from recdistill_core.errors import UsageError
from recdistill_core.interfaces import SampleSource
from recdistill_core.sampler import Candidates
from recdistill_lightning.modules import StudentModule
from recdistill_pipeline.models import build_student
from recdistill_pipeline.run import Run

Progress = Callable[[int, int], None]


def raw_student(run: Run, source: SampleSource, label: str, seed: int) -> StudentModule:
    """The raw student of one seed of a run, in eval mode.

    Args:
        run: a run. source: its dataset. label: of the student; empty: the first one. seed: one of the run's seeds.

    Raises:
        UsageError: for a student or a seed that the run has not, or one that is not trained yet.
        IntegrityError: if its weights were changed.
    """
    label = label or next(iter(run.plan.students))
    if label not in run.plan.students:
        raise UsageError(
            f"the run has no student {label!r}",
            where=str(run.directory.path),
            fix=f"use one of: {', '.join(run.plan.students)}",
        )
    if seed not in run.plan.config.seeds:
        raise UsageError(
            f"the run has no seed {seed}",
            where=str(run.directory.path),
            fix=f"use one of: {', '.join(map(str, run.plan.config.seeds))}",
        )
    step = f"seed-{seed}/{label}-raw"
    if not run.directory.done(step):
        raise UsageError(
            f"the raw student {label} of seed {seed} is not trained yet",
            where=str(Path(run.directory.path) / step),
            fix="run 'student fit' first, or 'run'",
        )
    weights = run.directory.checked(step, "model.safetensors")
    return build_student(run.plan, label, source.schema, seed, distilled=False, weights=weights).eval()


def see(
    module: StudentModule,
    source: SampleSource,
    rows: tuple[int, int],
    batch_size: int,
    progress: Progress = lambda done, total: None,
) -> Candidates:
    """The rows ``[first, last + 1)`` with the student's backbone as embedding and its main tower's logits.

    The student is shown no outcome here, but it was trained on the outcomes of these rows.

    Args:
        module: a student in eval mode. source: the dataset. rows: N row positions.
        batch_size: rows that are encoded at once. progress: told (rows done, N).
    """
    first, last = rows
    count = last - first
    users = source.column("user_id")[first:last].astype(np.int64)
    order = np.argsort(users, kind="stable").astype(np.int64)  # rows of one user share their history
    embedding = np.empty((count, module.student.width), np.float32)
    logits = {task: np.empty(count, np.float32) for task in module.objectives}
    with torch.no_grad():
        for start in range(0, count, batch_size):
            part = order[start : start + batch_size]
            batch = source.batch(part + first, module.history).without_outcomes()
            features = module.student.backbone(batch)
            embedding[part] = features.numpy()
            for task, logit in module.main(features).items():
                logits[task][part] = logit.numpy()
            progress(start + len(part), count)
    ids, times = (source.column(name)[first:last].astype(np.int64) for name in ("example_id", "event_time"))
    return Candidates(ids, times, users, embedding, logits)
