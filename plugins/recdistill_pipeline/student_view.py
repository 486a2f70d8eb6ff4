"""What students see of the dataset, where it is not what the teacher sees."""

from __future__ import annotations

from pathlib import Path

from recdistill_core.interfaces import SampleSource
from recdistill_lightning.feature_view import FeatureView
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
