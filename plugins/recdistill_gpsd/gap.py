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
        percentile intervals over users; a user has one weight on both sides.

    Raises:
        UsageError: if a run has no trained teacher, or the runs are of different tasks.
    """
    if rows < 1 or resamples < 1:
        raise UsageError(f"--rows and --resamples must be at least 1, got {rows} and {resamples}")
    found = [_one(path, rows, resamples, confidence, tell) for path in runs]
    tasks = list(dict.fromkeys(entry["task"] for entry in found))
    if len(tasks) > 1:
        raise UsageError(f"the runs are of different tasks: {', '.join(tasks)}", fix="compare runs of one task")
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
    measured = {
        name: compare(make(installed(), "metric", {"name": name}), *sides, resamples, confidence) for name in METRICS
    }
    return {
        "run": str(path),
        "task": task,
        "pretrained": manifest.get("pretrained"),
        "seeds": list(seeds),
        "train_rows": len(train),
        "test_rows": len(test),
        **measured,
    }


def compare(
    metric: Metric, train: Scored, test: Scored, resamples: int, confidence: float
) -> dict[str, Mapping[str, float | None]]:
    """``{"train" | "test" | "gap": {value, low, high}}`` of one metric; None where it is undefined."""
    users, index = np.unique(np.concatenate([train.user, test.user]), return_inverse=True)
    of_train = _over_seeds(metric, train, index[: len(train.user)])
    of_test = _over_seeds(metric, test, index[len(train.user) :])

    def values(weights: Floats) -> Floats:
        low, high = of_train(weights), of_test(weights)
        return np.array([low, high, high - low])

    point = values(np.ones(len(users)))
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    drawn = np.array(
        [
            values(np.bincount(rng.integers(len(users), size=len(users)), minlength=len(users)).astype(np.float64))
            for _ in range(resamples)
        ]
    )
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    tail = (1.0 - confidence) / 2
    bounds = np.quantile(drawn, [tail, 1.0 - tail], axis=0) if len(drawn) else np.full((2, 3), np.nan)
    return {
        name: {"value": _number(point[at]), "low": _number(bounds[0, at]), "high": _number(bounds[1, at])}
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
