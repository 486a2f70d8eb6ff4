"""Ways to a small student: trained small, enlarged and pruned, grown and pruned, with a teacher and without.

The feed is simulated, the regime that of the demo: students see the newest part of what their teacher has seen. Every
way gets the same steps, the same three learning rates and the same cosine; its rate is the one with the lower NE on the
rows between training and test, averaged over seeds. Prints Markdown tables:

    python benchmarks/pruning.py --out FOLDER [--seeds 3]
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from reporting import machine

from recdistill_core import BuildContext, Objective
from recdistill_core.config import make
from recdistill_core.interfaces import HeadStrategy
from recdistill_core.registry import installed
from recdistill_lightning import (
    DistillationDataModule,
    LogitCapture,
    Optimisation,
    ReadOrder,
    StudentModule,
    TeacherModule,
    read_labels,
)
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.dataset_writer import write_dataset
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_pipeline.scoring import cost, score_rows
from recdistill_prune import GrowPrune, IdeaPrune, InRecovery, OneCosine

FEED = {
    "name": "simulator", "users": 600, "items": 400, "impressions": 120_000, "history_length": 60, "seed": 7,
    "tasks": ["click"],
}  # fmt: skip
TEACHER = {
    "name": "hstu", "width": 32, "layers": 1, "heads": 2, "max_length": 128, "history_stride": 32, "context_width": 8,
    "hidden": [64, 32],
}  # fmt: skip
STUDENT = {"name": "mlp", "embedding": 8, "hidden": [4, 16], "tower": 4, "recent": 20}
LARGE = {**STUDENT, "hidden": [32, 16], "tower": 32}
ENLARGE, RATES, ALPHA, EPOCHS = 8.0, (1e-3, 2.5e-3, 6e-3), 5.0, 3
SHARES = (0.5, 0.7, 0.75)
QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Study:
    """The feed, the labels of one teacher per seed, and what a student scores."""

    def __init__(self, out: Path) -> None:
        if not (out / "dataset").is_dir():
            write_dataset(make(installed(), "importer", FEED, BuildContext()).open(), out / "dataset")
        self.source = ParquetSource(out / "dataset")
        self.store = ParquetLogitStore(out / "labels")
        rows = self.source.num_rows
        start, stop, test = (int(share * rows) for share in SHARES)
        self.train, self.validation, self.test = (start, stop), (stop, test), (test, rows)
        self.context = BuildContext(self.source.schema, ("click",))

    def teacher(self, seed: int) -> tuple[Any, dict[str, float]]:
        """Labels of the students' rows, and the teacher's quality on the test rows."""
        torch.manual_seed(seed)
        module = TeacherModule(
            make(installed(), "teacher", TEACHER, self.context), tasks=["click"], optimisation=Optimisation(lr=3e-3)
        )
        order = ReadOrder(256, 72.0, "user")
        data = DistillationDataModule(self.source, order, train=(0, self.train[1]), history=module.history, seed=seed)
        capture = LogitCapture(self.store, resume=True)
        _fit(module, data, [capture])
        assert capture.committed is not None
        signal, covered = read_labels(self.source, self.store, capture.committed.version, self.train, 0.99)
        del covered
        return signal, self.quality(module, self.test)

    def student(self, way: Way, rate: float, seed: int, labels: Any) -> StudentModule:
        """A student that was trained in one way."""
        torch.manual_seed(seed)
        student = make(installed(), "student", way.student, self.context)
        pruning = way.pruning() if way.pruning else None
        objective = Objective("click")
        if way.distilled:
            strategy: HeadStrategy = make(installed(), "strategy", {"name": "single", "alpha": ALPHA})
            if way.distilled == "recovery":
                assert isinstance(pruning, IdeaPrune)
                strategy = InRecovery(strategy, pruning)
            objective = Objective("click", strategy, make(installed(), "loss", "soft_ce"))
        module = StudentModule(student, {"click": objective}, OneCosine(lr=rate))
        data = DistillationDataModule(
            self.source,
            ReadOrder(128, 72.0, "shuffle"),
            train=self.train,
            batch_epochs=EPOCHS,
            history=module.history,
            labels=labels if way.distilled else None,
            seed=seed,
        )
        _fit(module, data, [pruning] if pruning else [])
        return module

    def quality(self, module: Any, rows: tuple[int, int]) -> dict[str, float]:
        """AUC, GAUC and NE on some rows."""
        module.eval()
        logit = score_rows(self.source, rows, module.history, lambda batch: module(batch)["click"], 2048)
        label = self.source.column("label_click")[slice(*rows)].astype(np.float64)
        _, user = np.unique(self.source.column("user_id")[slice(*rows)], return_inverse=True)
        ones = np.ones(int(user.max()) + 1)
        names = ("auc", "gauc", "ne")
        return {name: make(installed(), "metric", name).prepare(logit, label, user)(ones) for name in names}


class Way:
    """One way to a student: its size, its callback, and when it listens to a teacher (never, always, in recovery)."""

    def __init__(self, student: dict[str, Any], pruning: Callable[[], Any] | None = None, distilled: str = "") -> None:
        self.student, self.pruning, self.distilled = student, pruning, distilled


def idea() -> IdeaPrune:
    """From eight times the hidden neurons to the student's own."""
    return IdeaPrune(enlarge=ENLARGE)


WAYS = {
    "small": Way(STUDENT),
    "small, cut at once (1 cut)": Way(STUDENT, lambda: IdeaPrune(enlarge=ENLARGE, begin=0.6, end=0.6, cuts=1)),
    "small, idea_prune": Way(STUDENT, idea),
    "small, distilled": Way(STUDENT, None, "always"),
    "small, idea_prune, distilled in recovery": Way(STUDENT, idea, "recovery"),
    "small, idea_prune, distilled throughout": Way(STUDENT, idea, "always"),
    "large": Way(LARGE),
    "large, grow_prune": Way(LARGE, GrowPrune),
}


def _fit(module: Any, data: DistillationDataModule, callbacks: list[Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            max_epochs=data.epochs, callbacks=callbacks, limit_val_batches=0, accelerator="cpu", **QUIET
        )
        trainer.fit(module, datamodule=data)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the feed and the labels")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--way", action="append", choices=list(WAYS), help="only these; may be given several times")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    study, seeds = Study(options.out), range(1, options.seeds + 1)
    made = [study.teacher(seed) for seed in seeds]
    print(", ".join(f"{key} {value}" for key, value in machine().items()), flush=True)
    columns = ["way", "rate", "AUC", "GAUC", "NE", "NE by seed", "NE, other rates"]
    columns += ["dense parameters", "FLOPs"]
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    print(f"| teacher | 0.003 | {_shown([found for _, found in made])} | | | | |", flush=True)
    for name in options.way or WAYS:
        _row(study, name, [labels for labels, _ in made])


def _row(study: Study, name: str, labels: list[Any]) -> None:
    """One line of the table: the best rate by validation, and its numbers on the test rows."""
    found: dict[float, tuple[float, list[dict[str, float]], dict[str, float]]] = {}
    for rate in RATES:
        checks, tests = [], []
        for seed, signal in enumerate(labels, 1):
            module = study.student(WAYS[name], rate, seed, signal)
            checks.append(study.quality(module, study.validation)["ne"])
            tests.append(study.quality(module, study.test))
        served = module.serving_module()
        score: Callable[[Any], Any] = module
        found[rate] = (float(np.mean(checks)), tests, cost(served, score, study.source, study.test, module.history))
    best = min(found, key=lambda rate: found[rate][0])
    _, tests, costs = found[best]
    others = ", ".join(
        f"{rate:g}: {np.mean([test['ne'] for test in found[rate][1]]):.4f}" for rate in RATES if rate != best
    )
    each = ", ".join(f"{test['ne']:.4f}" for test in tests)
    print(
        f"| {name} | {best:g} | {_shown(tests)} | {each} | {others} | {costs['dense_parameters']:,.0f} "
        f"| {costs['flops_per_impression']:,.0f} |",
        flush=True,
    )


def _shown(found: list[dict[str, float]]) -> str:
    """``mean +- standard deviation over seeds`` of each metric."""
    spread = {key: [entry[key] for entry in found] for key in found[0]}
    return " | ".join(f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}" for values in spread.values())


if __name__ == "__main__":
    main()
