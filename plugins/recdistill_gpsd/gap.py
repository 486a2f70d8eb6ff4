"""How much better a teacher is on the rows that it was trained on than on test rows, with and without pre-training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recdistill_core.config import make
from recdistill_core.errors import UsageError
from recdistill_core.interfaces import Metric, SampleSource, TrainableTeacher
from recdistill_core.registry import installed
from recdistill_pipeline.dataset import make_split
from recdistill_pipeline.rundir import read_json
from recdistill_pipeline.scoring import rows_by_user
from recdistill_pipeline.teacher_of_run import TeacherOfRun

METRICS = ("ne", "auc")
SAMPLE_SEED = BOOTSTRAP_SEED = 20_250_605
Floats = NDArray[np.float64]
Tell = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Scored:
    """Rows and a teacher's raw logits of every seed: ``label [N]``, ``user [N]``, ``logits`` one ``[N]`` per seed."""

    label: Floats
    user: NDArray[np.int64]
    logits: Sequence[Floats]


def gaps(
    runs: Sequence[Path],
    *,
    rows: int = 50_000,
    resamples: int = 500,
    confidence: float = 0.95,
    tell: Tell = lambda what, done, of: None,
) -> dict[str, Any]:
    """NE and AUC of each run's teachers on a sample of their training rows and on all test rows.

    Teachers are those at the end of training. The sample is the same for runs of one dataset and split.

    Args:
        runs: run directories, of one task. rows: size of the sample. resamples: of users, for the intervals.

    Returns:
        JSON-able: per run and metric ``train``, ``test`` and ``gap`` (test minus train), means over seeds with
        percentile intervals over users; a user has one weight on both sides. Every run but the first has the
        same of its difference to the first under ``versus_first``, paired by user; None where their rows differ.

    Raises:
        UsageError: if a run has no trained teacher, or the runs are of different tasks.
    """
    if rows < 1 or resamples < 1:
        raise UsageError(f"--rows and --resamples must be at least 1, got {rows} and {resamples}")
    found = [_one(path, rows, resamples, confidence, tell) for path in runs]
    tasks = list(dict.fromkeys(entry["task"] for entry in found))
    if len(tasks) > 1:
        raise UsageError(f"the runs are of different tasks: {', '.join(tasks)}", fix="compare runs of one task")
    first = found[0]
    for entry in found[1:]:
        same = all(entry[key] == first[key] for key in ("dataset", "split"))
        entry["versus_first"] = {
            name: intervals(entry["draws"][name] - first["draws"][name], confidence) if same else None
            for name in METRICS
        }
    for entry in found:
        del entry["draws"]
    return {"task": tasks[0], "rows": rows, "confidence": confidence, "metrics": list(METRICS), "runs": found}


def _one(path: Path, rows: int, resamples: int, confidence: float, tell: Tell) -> dict[str, Any]:
    plan = TeacherOfRun.of(path).plan()
    task, seeds = plan.config.task, plan.config.seeds
    source = TeacherOfRun.of(path).dataset(plan)
    split = make_split(source, plan.config.split)
    train, test = _observed(source, split.teacher, task), _observed(source, split.test, task)
    if len(train) > rows:
        train = np.sort(np.random.default_rng(SAMPLE_SEED).choice(train, rows, replace=False))
    of_train: list[Floats] = []
    of_test: list[Floats] = []
    title = f"scoring with the teachers of {path}"
    for at, seed in enumerate(seeds):
        tell(title, at, len(seeds))
        teacher = TeacherOfRun.of(path, seed).teacher(plan, source)
        if not isinstance(teacher, TrainableTeacher):
            raise UsageError(
                f"the run's teacher {plan.teacher.name} is not trained here, so it has no training rows",
                where=str(path),
                fix="name a run that trained its teacher",
            )
        for kept, part in ((of_train, train), (of_test, test)):
            kept.append(_score(teacher, source, part, task, plan.config.evaluation.batch_size))
    tell(title, len(seeds), len(seeds))
    manifest = read_json(path / f"seed-{seeds[0]}/teacher/manifest.json")
    label, user = source.column(f"label_{task}").astype(np.float64), source.column("user_id")
    sides = Scored(label[train], user[train], of_train), Scored(label[test], user[test], of_test)
    draws = {name: draw(make(installed(), "metric", {"name": name}), *sides, resamples) for name in METRICS}
    return {
        "run": str(path),
        "task": task,
        "dataset": source.snapshot_id,
        "split": [list(split.teacher), list(split.test)],
        "pretrained": manifest.get("pretrained"),
        "seeds": list(seeds),
        "train_rows": len(train),
        "test_rows": len(test),
        "draws": draws,
        **{name: intervals(found, confidence) for name, found in draws.items()},
    }


def draw(metric: Metric, train: Scored, test: Scored, resamples: int) -> Floats:
    """``[1 + resamples, 3]`` of one metric: training side, test side, and test minus training; the first of all users.

    The users of a resample depend on their number alone, so that draws of two models on the same rows are paired.
    """
    users, index = np.unique(np.concatenate([train.user, test.user]), return_inverse=True)
    of_train = _over_seeds(metric, train, index[: len(train.user)])
    of_test = _over_seeds(metric, test, index[len(train.user) :])
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    found = np.empty((1 + resamples, 3))
    for at in range(1 + resamples):
        picked = rng.integers(len(users), size=len(users)) if at else np.arange(len(users))
        weights = np.bincount(picked, minlength=len(users)).astype(np.float64)
        low, high = of_train(weights), of_test(weights)
        found[at] = low, high, high - low
    return found


def intervals(draws: Floats, confidence: float) -> dict[str, Mapping[str, float | None]]:
    """``{"train" | "test" | "gap": {value, low, high}}`` of :func:`draw`; None where it is undefined."""
    defined = draws[1:][np.isfinite(draws[1:]).all(axis=1)]
    tail = (1.0 - confidence) / 2
    bounds = np.quantile(defined, [tail, 1.0 - tail], axis=0) if len(defined) else np.full((2, 3), np.nan)
    return {
        name: {"value": _number(draws[0, at]), "low": _number(bounds[0, at]), "high": _number(bounds[1, at])}
        for at, name in enumerate(("train", "test", "gap"))
    }


def _over_seeds(metric: Metric, part: Scored, user: NDArray[np.int64]) -> Callable[[Floats], float]:
    """The metric's mean over seeds, of the weights of all users; ``user [N]`` in place of ``part.user``."""
    prepared = [metric.prepare(logit, part.label, user) for logit in part.logits]
    count = int(user.max()) + 1  # a metric takes as many weights as it has seen users
    return lambda weights: float(np.mean([evaluate(weights[:count]) for evaluate in prepared]))


def _observed(source: SampleSource, rows: tuple[int, int], task: str) -> NDArray[np.int64]:
    label = source.column(f"label_{task}")[rows[0] : rows[1]]
    return rows[0] + np.flatnonzero(~np.isnan(label))


def _score(teacher: TrainableTeacher, source: SampleSource, rows: NDArray[np.int64], task: str, size: int) -> Floats:
    """Raw logits ``[R]`` of ``rows [R]``, in their order."""
    order = np.argsort(source.column("user_id")[rows], kind="stable")
    parts = [
        teacher.score(batch.without_outcomes()).logits[task].double().cpu().numpy()
        for batch in rows_by_user(source, rows, teacher.history, size)
    ]
    found = np.empty(len(rows))
    found[order] = np.concatenate(parts)
    return found


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
