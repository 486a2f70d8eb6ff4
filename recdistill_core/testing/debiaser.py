"""Checks for debiasers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from recdistill_core.testing.cases import Case, exercise
from recdistill_core.testing.samples import TASK


@exercise("debiaser")
def run_debiaser(case: Case, made: Any) -> Mapping[str, Any]:
    """Fit on one batch, then weights, corrections and training logits of another."""
    made.fit([case.batch(), case.batch(seed=1)], TASK)
    batch = case.batch(seed=2)
    logit = torch.linspace(-2, 0.5, len(batch))
    return {
        "weight": made.weight(batch, TASK),
        "correct": made.correct(logit, batch, TASK),
        "training_logit": made.training_logit(logit, batch, TASK),
    }
