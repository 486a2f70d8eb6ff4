"""The training jobs: a teacher whose logits land in the store as it trains, and students that learn from the store."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recdistill_core.batch import TeacherSignal
from recdistill_core.component import BuildContext
from recdistill_core.errors import DataError
from recdistill_core.interfaces import HistoryWindow, LabelVersion, LogitStore, SampleSource
from recdistill_core.labels import LabelPolicy
from recdistill_lightning.candidates import CandidateDraw, CandidateItems, CandidateLabels
from recdistill_lightning.capture import LogitCapture
from recdistill_lightning.capture_after import capture_after_training
from recdistill_lightning.data import DistillationDataModule
from recdistill_lightning.folds import make_folds
from recdistill_lightning.modules import StudentModule, TeacherModule
from recdistill_pipeline import embeddings
from recdistill_pipeline.checkpoint import save_weights
from recdistill_pipeline.dataset import Split
from recdistill_pipeline.models import build_student, build_teacher, debiaser_reports, fit_debiasers, read_order
from recdistill_pipeline.plan import Plan
from recdistill_pipeline.pretrained import take_over
from recdistill_pipeline.runconfig import TrainingConfig
from recdistill_pipeline.scoring import rows_by_user
from recdistill_pipeline.states import leave_states, state_capture, state_facts
from recdistill_pipeline.student_labels import as_it_was, chosen_rows, label_facts, student_labels
from recdistill_pipeline.student_view import student_view

logger = logging.getLogger(__name__)


def fit_teacher(
    plan: Plan,
    source: SampleSource,
    split: Split,
    store: LogitStore,
    seed: int,
    out: Path,
    folds: Sequence[LabelVersion] = (),
) -> dict[str, Any]:
    """Train a teacher into ``out`` and leave its labels in the store; returns the step's facts.

    Args:
        plan, source, split, store, seed, out: as they say.
        folds: versions of the copies that have labelled the rows out of fold already.
    """
    config = plan.config.teacher_training
    module = build_teacher(plan, source.schema, seed)
    taken = take_over(plan, module, source, split)
    beside = candidates_of(plan, source, seed)
    data = training_data(module, source, config, split.teacher, split.stream, seed, candidates=beside)
    # resume: a crash may fall between the commit of the labels and that of the step
    facts = {**label_notes(plan), **taken}
    capture = LogitCapture(store, warmup_steps=plan.config.capture.warmup_steps, facts=facts, resume=True)
    states, snapshot = state_capture(plan), embeddings.snapshot_of(plan, source, split)
    callbacks: list[Any] = [capture] if plan.config.capture.mode == "prequential" else []
    callbacks += [callback for callback in (states, snapshot) if callback is not None]
    trainer = plan.trainer.build(BuildContext(source.schema, plan.config.all_tasks()))
    trainer.fit(module, data, epochs=data.epochs, callbacks=callbacks, out=out / "log", title=f"teacher, seed {seed}")
    save_weights(module.state_dict(), out / "model.safetensors")
    module.trained.save(out / "trained_on.npy")
    labels = list(folds) or [capture.committed or _capture_leaky(plan, module, data, store, facts)]
    kept = leave_states(plan, states, module, source, split, seed, labels[0].version, out)
    return {
        "kind": "teacher",
        "seed": seed,
        "labels": label_facts(labels, LabelPolicy.ANY_OF if len(labels) > 1 else LabelPolicy.EXACT),
        "fingerprint": module.teacher.fingerprint(),
        "description": dict(module.teacher.describe()),
        "history": history_facts(source, module.history, split.teacher),
        "debiasers": debiaser_reports(module),
        **({"candidates": label_facts([capture.candidates.committed])} if capture.candidates.committed else {}),
        **kept,
        **embeddings.keep(snapshot, out),
        **taken,
    }


def candidates_of(plan: Plan, source: SampleSource, seed: int) -> CandidateItems | None:
    """The candidates that the configuration asks for, or None; teacher and students of one seed have the same."""
    config = plan.config.candidates
    return (
        CandidateItems(source, CandidateDraw(config.per_row, config.by, seed, config.hard)) if config.per_row else None
    )


def history_facts(source: SampleSource, window: HistoryWindow | None, rows: tuple[int, int]) -> dict[str, Any]:
    """How many of ``rows`` have more events before them than the window shows; empty where that is not known."""
    if window is None:
        return {}
    try:
        seen = source.column("history_end")[slice(*rows)]
    except DataError:  # a source of a third party need not keep it
        return {}
    cut = int((seen > window.length).sum())
    if cut:
        kept = f"the oldest {window.oldest} and the newest" if window.oldest else "the newest"
        logger.info(
            "teacher: %s of %s rows have more than %s events before them and see %s of these",
            f"{cut:,}",
            f"{len(seen):,}",
            f"{window.length:,}",
            kept,
        )
    return {**asdict(window), "rows": len(seen), "rows_cut": cut, "longest": int(seen.max(initial=0))}


def fit_fold(
    plan: Plan, source: SampleSource, split: Split, store: LogitStore, seed: int, number: int, out: Path
) -> dict[str, Any]:
    """Train one copy of the teacher and have it label the rows of its fold, none of which can have reached it."""
    config, capture = plan.config.teacher_training, plan.config.capture
    fold = make_folds(source, split.teacher, capture.folds, capture.fold_by, seed)[number]
    module = build_teacher(plan, source.schema, seed)
    taken = take_over(plan, module, source, split)
    data = training_data(module, source, config, split.teacher, split.stream, seed, keep=fold.train)
    trainer = plan.trainer.build(BuildContext(source.schema, plan.config.all_tasks()))
    title = f"teacher, seed {seed}, fold {number + 1} of {capture.folds}"
    trainer.fit(module, data, epochs=data.epochs, callbacks=[], out=out / "log", title=title)
    save_weights(module.state_dict(), out / "model.safetensors")
    module.trained.save(out / "trained_on.npy")
    facts = {"fold": number, "folds": capture.folds, "fold_by": capture.fold_by, **label_notes(plan), **taken}
    version = capture_after_training(
        module,
        rows_by_user(source, fold.score, module.history, plan.config.evaluation.batch_size),
        store,
        view=source.schema.view_hash(),
        facts={"dataset": source.snapshot_id, "seed": seed, "trained_until": module.trained.until(source), **facts},
        source=source,
        resume=True,
    )
    return {
        "kind": "fold",
        "seed": seed,
        "labels": label_facts([version]),
        "fingerprint": version.version,
        "trained_rows": int(fold.train.sum()),
        **taken,
    }


def label_notes(plan: Plan) -> dict[str, Any]:
    """What else makes the labels, as facts of their version."""
    return {
        "teacher": plan.teacher.plain(),
        "debiasers": [entry.plain() for entry in plan.teacher_debiasers],
        "trainer": plan.trainer.plain(),
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
    run: Path | None = None,
) -> dict[str, Any]:
    """Train a raw student (``teacher`` None) or one that learns from a teacher step's labels; returns its facts.

    ``run`` is the directory in whose name the labels' snapshot is pinned; None leaves it unpinned.
    """
    config = plan.config.training_of_students(distilled=teacher is not None)
    step = None if teacher is None or run is None else run / f"seed-{seed}/teacher"
    source = student_view(plan, source, step)
    module = build_student(plan, label, source.schema, seed, distilled=teacher is not None)
    facts: dict[str, Any] = {"kind": "student", "student": label, "seed": seed, "labels": None}
    if plan.config.privileged:
        facts["privileged"] = list(plan.config.privileged)  # features of the dataset that it does not read
    signal = beside = None
    if teacher is not None:
        facts |= state_facts(plan, source, step, split.student)
        aligned, facts["labels"] = student_labels(plan, source, split.student, store, teacher["labels"], run)
        signal = aligned.signal
        drawn = candidates_of(plan, source, seed)
        if drawn is not None:
            version = teacher["candidates"]["version"]
            there, keep = as_it_was(store, facts["labels"]), chosen_rows(plan, source)
            beside = CandidateLabels(drawn, there, version, split.student, keep)
            facts["candidates"] = {"version": version, **drawn.describe(), "labels": beside.count(split.student)}
    data = training_data(module, source, config, split.student, split.stream, seed, signal, candidates=beside)
    if teacher is not None:
        facts.update(embeddings.learn(plan, module, source, data.total_steps, seed, step))
    trainer = plan.trainer.build(BuildContext(source.schema, plan.config.all_tasks()))
    kind = "raw" if teacher is None else "distilled"
    title = f"{kind} {label}, seed {seed}"
    trainer.fit(module, data, epochs=data.epochs, callbacks=[], out=out / "log", title=title)
    kept = {name: part for name, part in module.state_dict().items() if not name.startswith(embeddings.PREFIX)}
    save_weights(kept, out / "model.safetensors")
    save_weights(_served(module), out / "serving.safetensors")
    facts["debiasers"] = debiaser_reports(module)
    return facts


def training_data(
    module: TeacherModule | StudentModule,
    source: SampleSource,
    config: TrainingConfig,
    rows: tuple[int, int],
    stream: int,
    seed: int,
    labels: TeacherSignal | None = None,
    keep: NDArray[np.bool_] | None = None,
    candidates: CandidateItems | CandidateLabels | None = None,
) -> DistillationDataModule:
    """The module's training rows, which its debiasers have looked at."""
    data = DistillationDataModule(
        source,
        read_order(config),
        train=rows,
        stream_from=stream,
        batch_epochs=config.batch_epochs,
        keep=keep,
        history=module.history,
        labels=labels,
        candidates=candidates,
        seed=seed,
    )
    fit_debiasers(module, data)
    return data


def _served(module: StudentModule) -> dict[str, Any]:
    return dict(module.serving_module().state_dict())
