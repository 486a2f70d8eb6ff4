"""The jobs behind the verbs: choose examples of a run, and judge its labels, into a Parquet file each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recdistill_core.component import BuildContext
from recdistill_core.config import fill, resolve
from recdistill_core.errors import ConfigError, DataError, Problem, UsageError
from recdistill_core.files import whole_or_absent
from recdistill_core.interfaces import SampleSource
from recdistill_core.sampler import Candidates
from recdistill_core.sampler import choose as checked_choice
from recdistill_lightning.data import align_labels
from recdistill_pipeline.dataset import Split
from recdistill_pipeline.run import Run
from recdistill_pipeline.student_labels import allowed_labels, choice_of, published_store
from recdistill_pipeline.student_view import student_view
from recdistill_select.candidates import raw_student, see
from recdistill_select.discriminator import DiscriminatorConfig, Verdict, unreliable

#: (what is done, rows done, rows in all)
Progress = Callable[[str, int, int], None]
#: Key of the file's metadata that says how it came to be.
ORIGIN = b"recdistill"


def choose(
    run: Run,
    *,
    budget: str,
    sampler: Mapping[str, Any],
    out: Path,
    seed: int | None = None,
    student: str = "",
    rows: str = "students",
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Choose examples of a run by what its raw student makes of them; writes ``example_id`` and ``rank``, in order.

    Args:
        run: with a trained raw student. budget: a number, or a share such as ``25%``.
        sampler: ``{name: k_center, ...}``. out: the Parquet file. seed: one of the run's; None: the first.
        student: label in the run; empty: the first. rows: ``students`` or ``teacher``, whose training rows.

    Returns:
        what was done, JSON-able; it is also in the file's metadata.

    Raises:
        UsageError: for a budget, rows, student or seed that cannot be, or a file that exists.
        ConfigError: for faulty settings. PluginError: for a sampler that is not installed or breaks its contract.
    """
    _require_absent(out)
    problems: list[Problem] = []
    found = resolve(run.registry, "sampler", sampler, "sampler", problems)
    if found is None:
        raise ConfigError(problems)
    source, split = run.dataset()
    span = _rows(split, rows)
    count = _budget(budget, span[1] - span[0])
    seed = run.plan.config.seeds[0] if seed is None else seed
    candidates = _seen(run, source, span, student, seed, progress)
    context = BuildContext(source.schema, run.plan.config.all_tasks())
    chosen = checked_choice(found.build(context), candidates, count, seed)
    answer = {
        "out": str(out),
        "examples": len(candidates),
        "chosen": count,
        "rows": rows,
        "sampler": found.pinned(),
        "seed": seed,
        "student": student or next(iter(run.plan.students)),
        "dataset": source.snapshot_id,
    }
    _write(out, {"example_id": candidates.example_id[chosen], "rank": np.arange(count)}, answer)
    return answer


def judge(
    run: Run,
    *,
    settings: Mapping[str, Any],
    out: Path,
    task: str = "",
    seed: int | None = None,
    student: str = "",
    everything: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Judge the labels that the run's store has for the students' training rows.

    Writes ``example_id``, ``probability``, ``local_rate`` and ``z`` of the rejected labels; with ``everything``
    of all labels, and ``rejected``.

    Args:
        run: with a teacher and a trained raw student. settings: of
            :class:`recdistill_select.discriminator.DiscriminatorConfig`. out: the Parquet file.
        task: empty: the run's. seed: one of the run's, for teacher and student; None: the first.
        student: label in the run; empty: the first.

    Returns:
        what was done, JSON-able; it is also in the file's metadata.

    Raises:
        UsageError: for a task, student or seed that cannot be, a seed without a teacher, or a file that exists.
        ConfigError: for faulty settings. DataError: if no row has a label.
    """
    _require_absent(out)
    problems: list[Problem] = []
    config = fill(DiscriminatorConfig, settings, "", problems, owner="the discriminator")
    if config is None:
        raise ConfigError(problems)
    seed = run.plan.config.seeds[0] if seed is None else seed
    task = task or run.plan.config.task
    if task not in run.plan.config.all_tasks():
        raise UsageError(
            f"the run has no task {task!r}",
            where="--task",
            fix=f"use one of: {', '.join(run.plan.config.all_tasks())}",
        )
    source, split = run.dataset()
    candidates = _seen(run, source, split.student, student, seed, progress)
    logit, version = _labels(run, source, split.student, task, seed)
    outcome = source.column(f"label_{task}")[slice(*split.student)].astype(np.float64)
    look = partial(progress, "looking for neighbours")
    times, embedding = candidates.event_time, candidates.embedding
    verdict = unreliable(logit, outcome, times, embedding, config, seed=seed, progress=look)
    answer = {
        "out": str(out),
        "labelled": int((~np.isnan(logit)).sum()),
        "rejected": int(verdict.rejected.sum()),
        "all": everything,
        "task": task,
        "settings": asdict(config),
        "seed": seed,
        "student": student or next(iter(run.plan.students)),
        "version": version,
        "dataset": source.snapshot_id,
    }
    _write(out, _columns(candidates, verdict, everything), answer)
    return answer


def _columns(candidates: Candidates, verdict: Verdict, everything: bool) -> dict[str, NDArray[Any]]:
    """What is written of the rejected labels, or of all."""
    kept = ~np.isnan(verdict.z) if everything else verdict.rejected
    columns: dict[str, NDArray[Any]] = {
        "example_id": candidates.example_id[kept],
        "probability": verdict.probability[kept],
        "local_rate": verdict.local_rate[kept],
        "z": verdict.z[kept],
    }
    return {**columns, "rejected": verdict.rejected[kept]} if everything else columns


def _seen(
    run: Run, source: SampleSource, rows: tuple[int, int], student: str, seed: int, progress: Progress
) -> Candidates:
    view = student_view(run.plan, source, None)
    module = raw_student(run, view, student, seed)
    return see(module, view, rows, run.plan.config.evaluation.batch_size, partial(progress, "looking at examples"))


def _labels(
    run: Run, source: SampleSource, rows: tuple[int, int], task: str, seed: int
) -> tuple[NDArray[np.float64], str]:
    """Raw logits ``[rows]`` that the seed's students may learn from, NaN without a label, and their version."""
    facts = allowed_labels(run.plan, source, run.store, run.teacher_facts(seed)["labels"])
    signal = align_labels(source, published_store(run.plan, run.store), choice_of(facts), rows).signal
    version: str = facts["version"]
    logit = np.where(signal.valid[task].numpy(), signal.logits[task].double().numpy(), np.nan)[slice(*rows)]
    if np.isnan(logit).all():
        raise DataError(
            f"none of the students' training rows has a label of task {task!r}",
            where=f"version {version}",
            fix="capture labels of these rows first",
        )
    return logit, version


def _rows(split: Split, name: str) -> tuple[int, int]:
    spans = {"students": split.student, "teacher": split.teacher}
    if name not in spans:
        raise UsageError(f"there are no rows {name!r}", where="--rows", fix=f"use one of: {', '.join(spans)}")
    return spans[name]


def _budget(text: str, count: int) -> int:
    """The number of examples that ``12345`` or ``25%`` stands for."""
    share, percent, rest = text.strip().partition("%")
    try:
        if rest:
            raise ValueError
        return round(float(share) / 100.0 * count) if percent else int(share)
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"budget {text!r} is no number and no share", where="--budget", fix="write for example 20000 or 25%"
        ) from error


def _require_absent(out: Path) -> None:
    if out.exists():
        raise UsageError("the file exists already", where=str(out), fix="give another --out, or delete it")
    if not out.parent.is_dir():
        raise UsageError("the folder of the file does not exist", where=str(out.parent), fix="make it first")


def _write(out: Path, columns: Mapping[str, Any], origin: Mapping[str, Any]) -> None:
    table = pa.table(dict(columns)).replace_schema_metadata({ORIGIN: json.dumps(origin, default=str)})
    with whole_or_absent(out) as place:
        pq.write_table(table, place)
