"""What students see of the dataset, where it is not what the teacher sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recdistill_core.interfaces import SampleSource
from recdistill_lightning.feature_view import FeatureView
from recdistill_pipeline.models import build_student
from recdistill_pipeline.plan import Plan
from recdistill_pipeline.states import with_states


def student_view(plan: Plan, source: SampleSource, teacher: Path | None) -> SampleSource:
    """The dataset as students of this run read it, in training, evaluation and export.

    Args:
        plan: the run's. source: the dataset. teacher: folder of the finished teacher step of the student's seed; None
            for a raw student, whose columns are those of a distilled one, with nothing of a teacher in them.
    """
    view = FeatureView(source, plan.config.privileged) if plan.config.privileged else source
    return with_states(plan, view, teacher)


def require_students(plan: Plan, source: SampleSource, row: int) -> None:
    """Build every student as it will be and show it the row at position ``row``: before a teacher is trained for it.

    Whatever a student, a strategy or a loss has to object is raised.
    """
    view = student_view(plan, source, None)
    for label in plan.students:
        module = build_student(plan, label, view.schema, plan.config.seeds[0], distilled=True)
        module.student.inputs(view.batch(np.array([row]), module.history))
