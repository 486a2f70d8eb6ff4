"""Build modules from a plan, always in the same order under a seed, and restore them from a run directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from recdistill_core.component import BuildContext
from recdistill_core.config import Resolved
from recdistill_core.errors import UsageError
from recdistill_core.interfaces import TrainableTeacher
from recdistill_core.objective import Objective
from recdistill_core.schema import Schema
from recdistill_lightning.data import DistillationDataModule
from recdistill_lightning.modules import Optimisation, StudentModule, TeacherModule
from recdistill_lightning.order import ReadOrder
from recdistill_pipeline.checkpoint import restore
from recdistill_pipeline.plan import Plan
from recdistill_pipeline.runconfig import TrainingConfig


def optimisation(config: TrainingConfig) -> Optimisation:
    """The optimiser settings of a training configuration."""
    return Optimisation(config.lr, config.weight_decay, config.warmup_steps, config.decay)


def read_order(config: TrainingConfig) -> ReadOrder:
    """The read order of a training configuration."""
    return ReadOrder(config.batch_size, config.window_hours, config.within)


def seed_everything(seed: int) -> None:
    """Seed torch; nothing in a run draws from any other global generator."""
    torch.manual_seed(seed)


def build_teacher(plan: Plan, schema: Schema, seed: int, weights: Path | None = None) -> TeacherModule:
    """A teacher with its objectives; ``weights`` restores it from a finished step.

    Raises:
        UsageError: if the configured teacher cannot be trained.
    """
    seed_everything(seed)
    context = BuildContext(schema, plan.config.all_tasks())
    teacher = plan.teacher.build(context)
    if not isinstance(teacher, TrainableTeacher):
        raise UsageError(
            f"{plan.teacher.label} scores but cannot be trained",
            where="teacher",
            fix="use a teacher that subclasses recdistill_core.TrainableTeacher",
        )
    objectives = {
        task: Objective(task, debiasers=_build(plan.teacher_debiasers, context)) for task in plan.config.all_tasks()
    }
    module = TeacherModule(teacher, objectives, optimisation(plan.config.teacher_training))
    if weights is not None:
        restore(module, weights)
    return module


def build_student(
    plan: Plan, label: str, schema: Schema, seed: int, *, distilled: bool, weights: Path | None = None
) -> StudentModule:
    """A raw or a distilled student; both start from equal weights under one seed."""
    seed_everything(seed)
    context = BuildContext(schema, plan.config.all_tasks())
    student = plan.students[label].build(context)
    state = torch.get_rng_state()
    objectives = {}
    for task in plan.config.all_tasks():
        debiasers = _build(plan.student_debiasers, context)
        if distilled:
            loss = plan.loss.build(replace(context, tasks=(task,)))  # a loss is about one task, some read its labels
            objectives[task] = Objective(task, plan.strategy.build(context), loss, debiasers)
        else:
            objectives[task] = Objective(task, debiasers=debiasers)
    # whatever the strategy or the loss drew must not move the towers of the distilled student away from the raw one's
    torch.set_rng_state(state)
    settings = optimisation(plan.config.training_of_students(distilled=distilled))
    module = StudentModule(student, objectives, settings, candidate_weight=plan.config.candidates.weight)
    seed_everything(seed)  # auxiliary towers drew too; what training draws (dropout) must start alike
    if weights is not None:
        restore(module, weights)
    return module


def fit_debiasers(module: TeacherModule | StudentModule, data: DistillationDataModule) -> None:
    """Let every debiaser look at the training rows once, before training."""
    for task in module.objectives:
        for debiaser in module.objective(task).all_debiasers():
            debiaser.fit(data.training_batches(), task)


def debiaser_reports(module: TeacherModule | StudentModule) -> dict[str, Any]:
    """What every debiaser has to say after training, by task."""
    return {
        f"{task}/{type(debiaser).__name__}": dict(debiaser.report())
        for task in module.objectives
        for debiaser in module.objective(task).all_debiasers()
    }


def _build(debiasers: Sequence[Resolved], context: BuildContext) -> list[Any]:
    return [entry.build(context) for entry in debiasers]
