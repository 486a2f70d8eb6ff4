"""What moves eta: students of a finished run trained again with one choice changed, against the same raw students.

Reads a run directory made by ``recdistill run examples/kuairand.yaml --out RUN`` and prints a Markdown table with the
distilled student's AUC and NE and eta with its 95% interval (paired bootstrap over users and seeds):

    python benchmarks/kuairand_choices.py RUN [--student dcn] [--choice 'alpha 1']
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recdistill_core.component import BuildContext
from recdistill_core.config import load_yaml
from recdistill_core.registry import installed
from recdistill_lightning.capture_after import capture_after_training
from recdistill_lightning.data import DistillationDataModule
from recdistill_lightning.trained import TrainedExamples
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_pipeline.dataset import make_split, open_dataset
from recdistill_pipeline.evaluate import BOOTSTRAP_SEED
from recdistill_pipeline.fit import fit_student
from recdistill_pipeline.models import build_student, build_teacher, read_order
from recdistill_pipeline.plan import Plan, make_plan
from recdistill_pipeline.rundir import read_json
from recdistill_pipeline.scoring import score_rows
from recdistill_pipeline.statistics import transferability

CHOICES: dict[str, list[str]] = {
    "as configured": [],
    "alpha 1": ["strategy.alpha=1"],
    "alpha 3": ["strategy.alpha=3"],
    "alpha 10": ["strategy.alpha=10"],
    "single head, alpha 1": ["strategy.name=single", "strategy.alpha=1"],
    "single head, alpha 10": ["strategy.name=single", "strategy.alpha=10"],
    "loss kl, temperature 2": ["loss.name=kl", "loss.temperature=2"],
    "loss mse on probabilities": ["loss.name=mse"],
    "leaky labels": [],
}


class Study:
    """The finished run and its parts."""

    def __init__(self, run: Path, student: str) -> None:
        self.run, self.student = run, student
        self.base = self.plan([])
        self.source = open_dataset(Path(self.base.config.dataset.path or run / "dataset"))
        self.split = make_split(self.source, self.base.config.split)
        first, last = self.split.test
        self.label = self.source.column(f"label_{self.base.config.task}")[first:last].astype(np.float64)
        self.seen = ~np.isnan(self.label)
        self.user = self.source.column("user_id")[first:last].astype(np.int64)

    def plan(self, overrides: Sequence[str]) -> Plan:
        """The run's plan with overrides; a changed component drops settings that it does not have."""
        plain = load_yaml(self.run / "config.yaml", overrides)
        for part in ("strategy", "loss"):
            known = installed().get(part, plain[part]["name"]).component.config.__dataclass_fields__
            plain[part] = {key: value for key, value in plain[part].items() if key == "name" or key in known}
        return make_plan(plain, installed())

    def logits(self, step: str, seed: int, scratch: Path, teacher: Any, plan: Plan) -> Any:
        """Test logits of the student that ``teacher``'s labels make under ``plan``."""
        fit_student(plan, self.student, self.source, self.split, teacher["store"], teacher, seed, scratch)
        weights = scratch / "model.safetensors"
        module = build_student(plan, self.student, self.source.schema, seed, distilled=True, weights=weights).eval()
        task, size = plan.config.task, plan.config.evaluation.batch_size
        return score_rows(self.source, self.split.test, module.history, lambda batch: module(batch)[task], size)

    def stored(self, name: str, seed: int) -> Any:
        """Test logits that the run kept, by model and seed, in row order of the observed rows."""
        import pyarrow.parquet as pq

        path = self.run / "predictions" / f"seed-{seed}-{name}.parquet"
        return pq.read_table(path)["logit"].to_numpy().astype(np.float64)

    def labels(self, seed: int, leaky: Path | None) -> Any:
        """The seed's teacher step with its store; ``leaky`` scores the training rows again into a new store."""
        facts = read_json(self.run / f"seed-{seed}/teacher/manifest.json")
        if leaky is None:
            return {**facts, "store": ParquetLogitStore(self.run / "labels")}
        home = self.run / f"seed-{seed}/teacher"
        module = build_teacher(self.base, self.source.schema, seed, home / "model.safetensors")
        order = read_order(self.base.config.teacher_training)
        data = DistillationDataModule(self.source, order, train=self.split.student, history=module.history)
        store = ParquetLogitStore(leaky)
        version = capture_after_training(
            module,
            data.training_batches(),
            store,
            trained=TrainedExamples.load(home / "trained_on.npy"),
            view=self.source.schema.view_hash(),
            facts={},
            allow_leaky=True,
        )
        labels = {**facts["labels"], "version": version.version, "mode": version.mode.value}
        return {**facts, "labels": labels, "store": store}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--student", default="dcn")
    parser.add_argument("--choice", action="append", choices=list(CHOICES), help="only this one; may be repeated")
    arguments = parser.parse_args()
    study = Study(arguments.run, arguments.student)
    seeds = study.base.config.seeds
    raw = [study.stored(f"{study.student}-raw", seed) for seed in seeds]
    teacher = [study.stored("teacher", seed) for seed in seeds]
    metrics = {name: entry.build(BuildContext()) for name, entry in study.base.metrics.items()}
    print("| choice | " + " | ".join(f"{name.upper()} | eta {name.upper()}" for name in metrics) + " |")
    print("|---" * (1 + 2 * len(metrics)) + "|")
    for choice in arguments.choice or CHOICES:
        plan, distilled = study.plan(CHOICES[choice]), []
        for seed in seeds:
            with tempfile.TemporaryDirectory() as scratch:
                leaky = Path(scratch) / "labels" if choice == "leaky labels" else None
                out = Path(scratch) / "student"
                out.mkdir()
                distilled.append(study.logits(choice, seed, out, study.labels(seed, leaky), plan)[study.seen])
        cells = []
        for metric in metrics.values():
            eta = transferability(
                metric, study.label[study.seen], study.user[study.seen], raw, teacher, distilled, seed=BOOTSTRAP_SEED
            )
            shown = eta.note if eta.value is None else f"{eta.value:.2f}"
            interval = f" [{eta.low:.2f}, {eta.high:.2f}]" if eta.low is not None else ""
            cells.append(f"{eta.distilled.value:.4f} | {shown}{interval}")
        print(f"| {choice} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
