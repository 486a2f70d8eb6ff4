"""Evaluation: every model on the same later rows, eta with intervals, and what each model costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recdistill_core.batch import Batch
from recdistill_core.component import BuildContext
from recdistill_core.interfaces import LogitStore, SampleSource
from recdistill_pipeline.dataset import Split
from recdistill_pipeline.external import teacher_logits
from recdistill_pipeline.models import build_student, build_teacher
from recdistill_pipeline.plan import Plan
from recdistill_pipeline.rundir import RunDirectory, read_json, trained_here
from recdistill_pipeline.scoring import cost, score_rows
from recdistill_pipeline.shared import SharedFolder, teacher_settings
from recdistill_pipeline.statistics import transferability
from recdistill_pipeline.student_labels import as_it_was
from recdistill_pipeline.student_view import student_view

Floats = NDArray[np.float64]
BOOTSTRAP_SEED = 20_240_229
RATIOS = ("parameters", "dense_parameters", "flops_per_impression")
#: Of a teacher that is not here.
UNKNOWN_COST: Mapping[str, float | None] = dict.fromkeys((*RATIOS, "embedding_parameters"))


@dataclass(frozen=True)
class Predictions:
    """Test rows and raw logits of every model and seed.

    Attributes:
        label: ``[N]`` of 0 and 1. user: ``[N]`` in ``[0, users)``.
        logits: ``{"teacher" | "raw/<student>" | "distilled/<student>": [one [N] array per seed]}``.
        costs: ``{"teacher" | student: cost}``; None for what is not known.
        truth: ``[N]`` true logits where a simulator kept them aside, or None.
    """

    label: Floats
    user: NDArray[np.int64]
    logits: Mapping[str, list[Floats]]
    costs: Mapping[str, Mapping[str, float | None]]
    truth: Floats | None


def predict(
    plan: Plan,
    run: RunDirectory,
    source: SampleSource,
    split: Split,
    store: LogitStore,
    say: Callable[[str], None],
) -> Predictions:
    """Score the observed test rows with every model; logits of a teacher that was not trained here are stored."""
    task = plan.config.task
    label = source.column(f"label_{task}")[split.test[0] : split.test[1]].astype(np.float64)
    seen = ~np.isnan(label)
    label = label[seen]
    user = np.unique(source.column("user_id")[split.test[0] : split.test[1]][seen], return_inverse=True)[1]
    logits: dict[str, list[Floats]] = {}
    costs: dict[str, Mapping[str, float | None]] = {}
    batch_size = plan.config.evaluation.batch_size
    for seed in plan.config.seeds:
        teacher = read_json(run.path / f"seed-{seed}/teacher/manifest.json")
        trained = trained_here(teacher)
        if not trained:
            rows = split.test[0] + np.flatnonzero(seen)
            found = teacher_logits(as_it_was(store, teacher["labels"]), teacher["labels"], task, source, rows)
            logits.setdefault("teacher", []).append(found)
            costs.setdefault("teacher", UNKNOWN_COST)
            _keep(run.path / "predictions" / f"seed-{seed}-teacher.parquet", source, split, seen, found)
        for name, step, module, view in _models(plan, run, source, seed, trained):
            module.eval()

            def score(batch: Batch, module: Any = module) -> Any:
                return module(batch)[task]

            def scored(
                name: str = name, seed: int = seed, module: Any = module, view: Any = view, score: Any = score
            ) -> Floats:
                say(f"scoring {split.test[1] - split.test[0]:,} test rows with {name}, seed {seed}")
                return score_rows(view, split.test, module.history, score, batch_size)

            shared = plan.config.shared if name == "teacher" else ""
            of = {**_scored_by(plan, source, split), "seed": seed, "weights": teacher["files"].get("model.safetensors")}
            found = (SharedFolder(Path(shared), say).array(of, scored) if shared else scored())[seen]
            logits.setdefault(name, []).append(found)
            key = name.removeprefix("raw/").removeprefix("distilled/")
            if key not in costs:
                served = module.teacher if name == "teacher" else module.serving_module()
                costs[key] = cost(served, score, view, split.test, module.history)
            _keep(run.path / "predictions" / f"{step.replace('/', '-')}.parquet", source, split, seen, found)
    # true probabilities are those before down-sampling: no yardstick for the labels of a down-sampled log
    truth = None if task in source.schema.keep_rates else source.truth(task)
    if truth is not None:
        part = np.clip(truth[split.test[0] : split.test[1]][seen], 1e-12, 1 - 1e-12)
        truth = np.log(part) - np.log1p(-part)
    return Predictions(label, user, logits, costs, truth)


def _scored_by(plan: Plan, source: SampleSource, split: Split) -> dict[str, Any]:
    """All that a teacher's logits of the test rows depend on, but for its weights."""
    rows = {"snapshot": source.snapshot_id, "rows": split.test, "batch_size": plan.config.evaluation.batch_size}
    return {**teacher_settings(plan), **rows, "task": plan.config.task}


def _models(plan: Plan, run: RunDirectory, source: SampleSource, seed: int, trained: bool) -> Any:
    """``(name, step, module, the dataset as it sees it)`` of every model of one seed that the run trained."""
    if trained:
        step = f"seed-{seed}/teacher"
        yield "teacher", step, build_teacher(plan, source.schema, seed, run.checked(step, "model.safetensors")), source
    for label in plan.students:
        for kind in ("raw", "distilled"):
            step = f"seed-{seed}/{label}-{kind}"
            weights = run.checked(step, "model.safetensors")
            distilled = kind == "distilled"
            view = student_view(plan, source, run.path / f"seed-{seed}/teacher" if distilled else None)
            module = build_student(plan, label, view.schema, seed, distilled=distilled, weights=weights)
            yield f"{kind}/{label}", step, module, view


def _keep(path: Path, source: SampleSource, split: Split, seen: NDArray[np.bool_], logit: Floats) -> None:
    path.parent.mkdir(exist_ok=True)
    ids = source.column("example_id")[split.test[0] : split.test[1]][seen]
    pq.write_table(pa.table({"example_id": ids, "logit": logit.astype(np.float32)}), path)


def measure(plan: Plan, found: Predictions, say: Callable[[str], None]) -> dict[str, Any]:
    """The numbers of ``metrics.json``, for every student; the first one's also at the top."""
    metrics = {name: entry.build(BuildContext()) for name, entry in plan.metrics.items()}
    plain = {name: entry.build(BuildContext()) for name, entry in plan.plain.items()}
    ones = np.ones(int(found.user.max()) + 1)
    students: dict[str, Any] = {}
    for label in plan.students:
        sides = {
            "raw": found.logits[f"raw/{label}"],
            "teacher": found.logits["teacher"],
            "distilled": found.logits[f"distilled/{label}"],
        }
        result: dict[str, Any] = {"raw": {}, "teacher": {}, "distilled": {}, "eta": {}, "gain": {}}
        for name, metric in metrics.items():
            say(f"bootstrap of {name} for {label}")
            eta = asdict(_eta(plan, metric, found, sides))
            result["eta"][name] = {
                key: eta[key] for key in ("value", "low", "high", "note", "fieller", "undefined_resamples")
            }
            result["gain"][name] = {"teacher": eta["gain"], "distilled": eta["gain_distill"]}
            for side in sides:
                result[side][name] = eta[side]["value"]
                result[side][f"{name}_interval"] = [eta[side]["low"], eta[side]["high"]]
                result[side][f"{name}_seeds"] = [
                    _number(metric.prepare(logit, found.label, found.user)(ones)) for logit in sides[side]
                ]
        for name, metric in plain.items():
            for side, logits in sides.items():
                values = [metric.prepare(logit, found.label, found.user)(ones) for logit in logits]
                result[side][name] = _number(float(np.mean(values)))
        result["cost"] = _costs(found.costs["teacher"], found.costs[label])
        students[label] = result
    first = next(iter(students.values()))
    answer = {"seeds": len(plan.config.seeds), **first, "students": students}
    if found.truth is not None:
        answer["oracle"] = {
            name: _number(metric.prepare(found.truth, found.label, found.user)(ones))
            for name, metric in metrics.items()
        }
    return answer


def _eta(plan: Plan, metric: Any, found: Predictions, sides: Mapping[str, list[Floats]]) -> Any:
    return transferability(
        metric,
        found.label,
        found.user,
        sides["raw"],
        sides["teacher"],
        sides["distilled"],
        seed=BOOTSTRAP_SEED,
        resamples=plan.config.evaluation.resamples,
        confidence=plan.config.evaluation.confidence,
    )


def _costs(teacher: Mapping[str, float | None], student: Mapping[str, float | None]) -> dict[str, Any]:
    """Teacher and student cost, and how many times cheaper the student is; None where it is not known."""
    return {
        "teacher": dict(teacher),
        "student": dict(student),
        "ratio": {key: _times(teacher[key], student[key]) for key in RATIOS},
    }


def _times(teacher: float | None, student: float | None) -> float | None:
    return teacher / student if teacher is not None and student else None


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
