"""The training jobs: a teacher whose logits land in the store as it trains, and students that learn from the store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recdistill_core.batch import TeacherSignal
from recdistill_core.component import BuildContext
from recdistill_core.interfaces import LabelVersion, LogitStore, SampleSource
from recdistill_lightning.capture import LogitCapture, capture_after_training
from recdistill_lightning.data import DistillationDataModule, align_labels
from recdistill_lightning.modules import StudentModule, TeacherModule
from recdistill_pipeline.checkpoint import save_weights
from recdistill_pipeline.dataset import Split
from recdistill_pipeline.models import build_student, build_teacher, debiaser_reports, fit_debiasers, read_order
from recdistill_pipeline.plan import Plan
from recdistill_pipeline.runconfig import TrainingConfig


def fit_teacher(
    plan: Plan, source: SampleSource, split: Split, store: LogitStore, seed: int, out: Path
) -> dict[str, Any]:
    """Train a teacher into ``out`` and leave its labels in the store; returns the step's facts."""
    config = plan.config.teacher_training
    module = build_teacher(plan, source.schema, seed)
    data = _training_data(module, source, config, split.teacher, split.stream, seed)
    # resume: a crash may fall between the commit of the labels and that of the step
    facts = {
        "teacher": plan.teacher.plain(),
        "debiasers": [entry.plain() for entry in plan.teacher_debiasers],
        "trainer": plan.trainer.plain(),
    }
    capture = LogitCapture(store, warmup_steps=plan.config.capture.warmup_steps, facts=facts, resume=True)
    callbacks = [capture] if plan.config.capture.mode == "prequential" else []
    trainer = plan.trainer.build(BuildContext(source.schema, plan.config.all_tasks()))
    trainer.fit(module, data, epochs=data.epochs, callbacks=callbacks, out=out / "log", title=f"teacher, seed {seed}")
    save_weights(module.state_dict(), out / "model.safetensors")
    module.trained.save(out / "trained_on.npy")
    version = capture.committed or _capture_leaky(plan, module, data, store, facts)
    return {
        "kind": "teacher",
        "seed": seed,
        "labels": _plain(version),
        "fingerprint": module.teacher.fingerprint(),
        "description": dict(module.teacher.describe()),
        "debiasers": debiaser_reports(module),
    }


def _capture_leaky(
    plan: Plan, module: TeacherModule, data: DistillationDataModule, store: LogitStore, facts: Mapping[str, Any]
) -> LabelVersion:
    """The mode that only shows the damage: score the rows the teacher has just been trained on."""
    return capture_after_training(
        module,
        data.training_batches(),
        store,
        view=data.source.schema.view_hash(),
        facts={"dataset": data.source.snapshot_id, "seed": data.seed, **facts},
        allow_leaky=plan.config.capture.allow_leaky,
        resume=True,
    )


def fit_student(
    plan: Plan,
    label: str,
    source: SampleSource,
    split: Split,
    store: LogitStore,
    teacher: Mapping[str, Any] | None,
    seed: int,
    out: Path,
) -> dict[str, Any]:
    """Train a raw student (``teacher`` None) or one that learns from a teacher step's labels; returns its facts."""
    config = plan.config.student_training
    module = build_student(plan, label, source.schema, seed, distilled=teacher is not None)
    facts: dict[str, Any] = {"kind": "student", "student": label, "seed": seed, "labels": None}
    signal = None
    if teacher is not None:
        version = teacher["labels"]["version"]
        aligned = align_labels(source, store, version, split.student, plan.config.capture.min_coverage)
        signal, coverage = aligned.signal, aligned.coverage(split.student)
        facts["labels"] = {
            **teacher["labels"],
            "coverage": {task: sum(shares.values()) for task, shares in coverage.items()},
            "store": aligned.snapshot,
        }
    data = _training_data(module, source, config, split.student, split.stream, seed, signal)
    trainer = plan.trainer.build(BuildContext(source.schema, plan.config.all_tasks()))
    kind = "raw" if teacher is None else "distilled"
    title = f"{kind} {label}, seed {seed}"
    trainer.fit(module, data, epochs=data.epochs, callbacks=[], out=out / "log", title=title)
    save_weights(module.state_dict(), out / "model.safetensors")
    save_weights(_served(module), out / "serving.safetensors")
    facts["debiasers"] = debiaser_reports(module)
    return facts


def _training_data(
    module: TeacherModule | StudentModule,
    source: SampleSource,
    config: TrainingConfig,
    rows: tuple[int, int],
    stream: int,
    seed: int,
    labels: TeacherSignal | None = None,
) -> DistillationDataModule:
    """The module's training rows, which its debiasers have looked at."""
    data = DistillationDataModule(
        source,
        read_order(config),
        train=rows,
        stream_from=stream,
        batch_epochs=config.batch_epochs,
        history=module.history,
        labels=labels,
        seed=seed,
    )
    fit_debiasers(module, data)
    return data


def _served(module: StudentModule) -> dict[str, Any]:
    return dict(module.serving_module().state_dict())


def _plain(version: LabelVersion) -> dict[str, Any]:
    return {
        "version": version.version,
        "mode": version.mode.value,
        "tasks": list(version.tasks),
        "count": version.count,
        "view": version.view,
    }
