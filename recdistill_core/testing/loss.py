"""Checks for distillation losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from recdistill_core.testing.cases import Case, exercise
from recdistill_core.testing.samples import TASK


@exercise("loss")
def run_loss(case: Case, made: Any) -> Mapping[str, Any]:
    """Per-row losses of spread logits."""
    batch = case.batch()
    assert batch.teacher is not None
    return {
        "loss": made(torch.linspace(2, -2, len(batch)), batch.teacher.clean(TASK)[0], batch, torch.ones(len(batch)))
    }
