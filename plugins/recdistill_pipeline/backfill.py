"""Back-fill: a teacher that is there labels the rows that have no label, block by block, here or on other machines."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from recdistill_core.engine import Engine
from recdistill_core.errors import DataError, IntegrityError, LeakError, UsageError
from recdistill_core.interfaces import CaptureMode, HistoryWindow, LabelVersion, SampleSource, TrainableTeacher
from recdistill_core.label_choice import unlabelled
from recdistill_core.labels import full_name
from recdistill_pipeline.label import score_batch, with_scores
from recdistill_pipeline.rundir import read_json
from recdistill_pipeline.scoring import rows_by_user
from recdistill_pipeline.shared import store_spec
from recdistill_pipeline.teacher_of_run import TeacherOfRun

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Filled:
    """What a back-fill did.

    Attributes:
        version, mode: of the labels. missing: rows that had no label.
        reached: those that were left out, as their label can have reached the teacher. added: rows that got a label.
        unscored: rows for which the teacher knows no score. blocks: how many were done, one commit each.
        snapshot: id of the store's newest commit.
    """

    version: str
    mode: str
    missing: int
    reached: int
    added: int
    unscored: int
    blocks: int
    snapshot: str


@dataclass(frozen=True)
class LabelBlocks:
    """The job: label blocks of rows, each in one commit. See :class:`recdistill_core.engine.Job`.

    Attributes:
        teacher: which one. version, mode: of the labels. threads: of torch, the same in every worker, so that every
            engine computes the same bits. batch_rows: rows that are scored at once.
    """

    teacher: TeacherOfRun
    version: str
    mode: CaptureMode
    threads: int
    batch_rows: int

    def open(self) -> Callable[[NDArray[np.int64]], dict[str, int]]:
        """Load the teacher and open the store; the function labels the row positions ``[R]`` that it is given."""
        torch.set_num_threads(self.threads)
        plan = self.teacher.plan()
        source, store = self.teacher.dataset(plan), self.teacher.store(plan)
        teacher, tasks = self.teacher.teacher(plan, source), plan.config.all_tasks()
        window: HistoryWindow | None = getattr(teacher, "history", None)
        facts, view = self.teacher.facts(plan, source), source.schema.view_hash()

        # one writer for all blocks: it reads what others have committed only once
        writer = store.writer(self.version, tasks=list(tasks), mode=self.mode, view=view, facts=facts)

        def label(rows: NDArray[np.int64]) -> dict[str, int]:
            added = unscored = 0
            try:
                with torch.no_grad():
                    for batch in rows_by_user(source, rows, window, self.batch_rows):
                        logits = score_batch(teacher, batch, tasks)
                        known, ids = with_scores(logits), batch.example_id.cpu()
                        unscored += int((~known).sum())
                        if known.any():
                            added += int(known.sum())
                            kept = {task: logit[known] for task, logit in logits.items()}
                            writer.append(ids[known], kept, step=-1, scored_at=time.time_ns() // 1_000_000)
                if added:
                    writer.commit()
            except BaseException:
                writer.abort()
                raise
            return {"added": added, "unscored": unscored}

        return label


def backfill(
    teacher: TeacherOfRun,
    engine: Engine,
    *,
    versions: Sequence[str] = (),
    rows: NDArray[np.int64] | None = None,
    allow_leaky: bool = False,
    block_rows: int = 100_000,
    progress: Progress | None = None,
) -> Filled:
    """Label the rows that have no label. What is committed stays; a job that ended early goes on when started again.

    A row gets a label only if its own outcome cannot have reached the teacher: the teacher was trained neither on it
    nor on a later row of its user, whose history holds the outcome. The labels of a teacher that was trained here are
    then ``out_of_fold``; those of one that was not are ``external``.

    Args:
        teacher: a finished teacher step of a run. engine: what does the blocks.
        versions: a row that has a visible label of one of these is left alone; none: the versions of the step.
        rows: ``[R]`` row positions to look at; None: all rows of the dataset.
        allow_leaky: label the other rows, too; the whole version is then marked ``leaky``.
        block_rows: rows of the dataset that make a block, >= 1.
        progress: told ``(blocks done, blocks)``.

    Raises:
        LeakError: if the outcomes of all these rows can have reached the teacher, or the store has the version with
            labels of another mode. UsageError: if it is revoked, or a setting is not usable.
        DataError: if there is no such version or step. IntegrityError: for labels of another dataset, or where what
            the workers committed is not in the store.
    """
    if block_rows < 1:
        raise UsageError(f"block_rows must be >= 1, got {block_rows}", where="backfill")
    plan = teacher.plan()
    source, store = teacher.dataset(plan), teacher.store(plan)
    looked = np.arange(source.num_rows) if rows is None else np.unique(np.asarray(rows, np.int64))
    model = teacher.teacher(plan, source)
    version, trained = model.fingerprint(), isinstance(model, TrainableTeacher)
    known = {entry.version: entry for entry in store.versions()}
    own = read_json(teacher.run / teacher.name / "manifest.json")["labels"]["versions"]
    wanted = [full_name(name, known) for name in versions] or list(own)
    if version in known and known[version].revoked:
        raise UsageError(
            f"the labels of version {version!r} are revoked: {known[version].revoked}",
            where="logit store",
            fix="restore them, or fill the gaps with another teacher",
        )
    counted = list(dict.fromkeys([*wanted, *([version] if version in known else [])]))
    for name in counted:
        _require_dataset(known.get(name), source, plan.config.labels.allow_other_dataset and name != version)
    missing = looked[unlabelled(store, counted, source.column("example_id")[looked])]
    mode = CaptureMode.EXTERNAL if not trained else CaptureMode.LEAKY if allow_leaky else CaptureMode.OUT_OF_FOLD
    reached = np.zeros(missing.shape, np.bool_) if mode != CaptureMode.OUT_OF_FOLD else teacher.reached(source, missing)
    todo = missing[~reached]
    if missing.size and not todo.size and version not in known:  # else an earlier call has done what can be done
        raise LeakError(
            f"the outcomes of all {missing.size:,} rows without a label can have reached this teacher: it was trained "
            "on them or on later rows of their users",
            where=str(teacher.run / teacher.name),
            fix="use a teacher or a fold's copy that was not; allow_leaky labels them, marked leaky",
        )
    blocks = np.split(todo, 1 + np.flatnonzero(np.diff(todo // block_rows))) if todo.size else []
    threads = plan.config.threads or torch.get_num_threads()
    batch_rows = min(int(getattr(model, "batch_rows", plan.config.evaluation.batch_size)), block_rows)
    job = LabelBlocks(teacher, version, mode, threads, batch_rows)
    del model  # the workers load their own
    added = unscored = 0
    for done, (_, told) in enumerate(engine.run(job, blocks), 1):
        added, unscored = added + told["added"], unscored + told["unscored"]
        if progress:
            progress(done, len(blocks))
    if blocks and not added and version not in known:
        raise DataError(
            f"the teacher has a score for none of the {todo.size:,} rows",
            where=str(teacher.run / teacher.name),
            fix="check what its scores are looked up by",
        )
    entry = next((entry for entry in store.versions() if entry.version == version), None)
    if added and (entry is None or entry.count <= (known[version].count if version in known else 0)):
        raise IntegrityError(
            f"{added:,} labels were committed, and none of them is in this store",
            where=store_spec(plan, teacher.run)["path"],
            fix="give it a path under which every worker finds it, and look at whether it set these logits aside",
        )
    counts = int(missing.size), int(reached.sum()), added, unscored, len(blocks)
    return Filled(version, (entry or job).mode.value, *counts, store.snapshot_id())


def _require_dataset(entry: LabelVersion | None, source: SampleSource, allow_other: bool) -> None:
    """Raise IntegrityError for labels of another dataset, in which equal ids may be other examples."""
    dataset = None if entry is None or allow_other else entry.facts.get("dataset")
    if entry is not None and dataset not in (None, source.snapshot_id):
        raise IntegrityError(
            f"labels of version {entry.version!r} were made for dataset {dataset}, and this is {source.snapshot_id}",
            where="logit store",
            fix="fill a store that has labels of this dataset, or name other versions",
        )
