"""What students see of the dataset, where it is not what the teacher sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from recdistill_core.batch import TeacherSignal
from recdistill_core.interfaces import CaptureMode, SampleSource
from recdistill_core.labels import LabelPolicy
from recdistill_core.objective import Objective
from recdistill_lightning.feature_view import FeatureView
from recdistill_pipeline.models import build_student
from recdistill_pipeline.plan import Plan
from recdistill_pipeline.runconfig import OWN
from recdistill_pipeline.states import with_states

#: Rows that are shown to students before a teacher is trained.
SHOWN = 64


def student_view(plan: Plan, source: SampleSource, teacher: Path | None) -> SampleSource:
    """The dataset as students of this run read it, in training, evaluation and export.

    Args:
        plan: the run's. source: the dataset. teacher: folder of the finished teacher step of the student's seed; None
            for a raw student, whose columns are those of a distilled one, with nothing of a teacher in them.
    """
    view = FeatureView(source, plan.config.privileged) if plan.config.privileged else source
    return with_states(plan, view, teacher)


def require_students(plan: Plan, source: SampleSource, rows: tuple[int, int]) -> None:
    """Build every student as it will be and show it the first of its rows ``[from, to)``, before a teacher is trained.

    Whatever a student, a strategy or a loss has to object is raised.
    """
    view = student_view(plan, source, None)
    first = np.arange(rows[0], min(rows[0] + SHOWN, rows[1]))
    for label in plan.students:
        module = build_student(plan, label, view.schema, plan.config.seeds[0], distilled=True)
        batch = view.batch(first, module.history)
        module.student.inputs(batch)
        batch = replace(batch, teacher=_labels_to_come(plan, len(first)))
        for task in module.objectives:
            objective = module.objective(task)
            logits = {head: torch.zeros(len(first), requires_grad=True) for head in ("main", *objective.auxiliary)}
            # debiasers have not looked at the rows yet
            Objective(task, objective.strategy, objective.loss).terms(logits, batch)


def _labels_to_come(plan: Plan, rows: int) -> TeacherSignal:
    """Labels such as the students will get, all 0."""
    logits = {task: torch.zeros(rows) for task in plan.config.all_tasks()}
    labels = TeacherSignal(logits, {task: torch.ones(rows, dtype=torch.bool) for task in logits}, "to come")
    versions, capture = plan.config.labels.versions or [OWN], plan.config.capture
    if plan.config.labels.policy != LabelPolicy.ALL_OF.value or not plan.config.mixes():
        return labels
    copies = capture.folds if capture.mode == CaptureMode.OUT_OF_FOLD.value else 1  # each is a version of its own
    own = copies * len(plan.of_teachers())
    return replace(labels, members=(labels,) * sum(own if name == OWN else 1 for name in versions))
