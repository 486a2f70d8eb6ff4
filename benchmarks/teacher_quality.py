"""What each part of the teacher is worth: the same teacher with one part switched, three seeds each or more.

Reads the dataset and the configuration of a run directory, and trains teachers alone, as that run trains its own: in
time order. Three studies, the second on simulated histories of thousands of events, the third of learnt embeddings:

    recdistill teacher fit examples/kuairand.yaml 'seeds=[1]' --out RUN
    python benchmarks/teacher_quality.py kuairand RUN --out OUT --plot benchmarks/teacher_scaling.png
    recdistill teacher fit benchmarks/long_history.yaml 'seeds=[1]' --out LONG
    python benchmarks/teacher_quality.py long LONG --out OUT_LONG
    recdistill teacher pretrain examples/kuairand_pretrained.yaml --out PRETRAINED
    recdistill teacher fit examples/kuairand_pretrained.yaml --out LATER
    python benchmarks/teacher_quality.py gpsd LATER --pretrained PRETRAINED --out OUT_GPSD

Each teacher's test logits are kept in OUT with a line in ``OUT/teachers.jsonl``, so a study that was stopped goes on.
``--only 'width'`` trains the arms with this in their name, ``--seed 4`` this seed alone: a row has all seeds that it
and the teacher as configured both have.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from kuairand_choices import Study
from numpy.typing import NDArray

from recdistill_core.component import BuildContext
from recdistill_core.config import load_yaml
from recdistill_core.registry import installed
from recdistill_pipeline.evaluate import BOOTSTRAP_SEED
from recdistill_pipeline.fit import training_data
from recdistill_pipeline.models import build_teacher
from recdistill_pipeline.plan import Plan, make_plan
from recdistill_pipeline.pretrained import take_over
from recdistill_pipeline.scoring import score_rows
from recdistill_pipeline.statistics import transferability

Floats = NDArray[np.float64]
SEEDS = (1, 2, 3)
BASE = "as configured"
#: arm -> overrides of the configuration
KUAIRAND: dict[str, tuple[str, ...]] = {
    BASE: (),
    "softmax": ("teacher.attention=softmax",),
    "no position bias": ("teacher.position_bias=false",),
    "no time bias": ("teacher.time_bias=false",),
    "no bias": ("teacher.position_bias=false", "teacher.time_bias=false"),
    "softmax, no bias": ("teacher.attention=softmax", "teacher.position_bias=false", "teacher.time_bias=false"),
    "no added action": ("teacher.added_action=false",),
    "semi-local, 16 + 4": ("teacher.attend_recent=16", "teacher.attend_oldest=4"),
    "semi-local, 16": ("teacher.attend_recent=16",),
    "truncated to 16 in the last layer": ("teacher.truncate_layers=1", "teacher.truncate_length=16"),
    "stochastic length 1.4": ("teacher.stochastic_length=1.4",),
    "stochastic length 1.4, balanced": ("teacher.stochastic_length=1.4", "teacher.stochastic_balance=true"),
    "length 1": ("teacher.max_length=1", "teacher.history_stride=1"),
    "length 10": ("teacher.max_length=10", "teacher.history_stride=5"),
    "length 50": ("teacher.max_length=50", "teacher.history_stride=25"),
    "length 50, oldest 10": ("teacher.max_length=50", "teacher.history_stride=20", "teacher.keep_oldest=10"),
    "length 256 (all)": ("teacher.max_length=256", "teacher.history_stride=256"),
    "width 16": ("teacher.width=16",),
    "width 32": ("teacher.width=32",),
    "width 128": ("teacher.width=128",),
    "1 layer": ("teacher.layers=1",),
    "4 layers": ("teacher.layers=4",),
    "width 128, 4 layers": ("teacher.width=128", "teacher.layers=4"),
    "selective checkpointing": ("teacher.checkpointing=selective",),
    "bf16 autocast": ("trainer.precision=bf16-mixed",),
    "hf, llama": (
        "teacher.name=hf",
        "teacher.checkpointing=false",
        "teacher.architecture=llama",
        "teacher.backend=chunked",
    ),
    "hf, qwen3": (
        "teacher.name=hf",
        "teacher.checkpointing=false",
        "teacher.architecture=qwen3",
        "teacher.backend=chunked",
    ),
}
LONG: dict[str, tuple[str, ...]] = {
    BASE: (),
    "length 10": ("teacher.max_length=10", "teacher.history_stride=5"),
    "length 50": ("teacher.max_length=50", "teacher.history_stride=25"),
    "length 256": ("teacher.max_length=256", "teacher.history_stride=128"),
    "length 1,024": ("teacher.max_length=1024", "teacher.history_stride=512"),
    "length 1,024, oldest 256": ("teacher.max_length=1024", "teacher.history_stride=384", "teacher.keep_oldest=256"),
    "length 4,096": ("teacher.max_length=4096", "teacher.history_stride=1024"),
    "semi-local, 256 + 64": ("teacher.attend_recent=256", "teacher.attend_oldest=64"),
    "semi-local, 256": ("teacher.attend_recent=256",),
    "truncated to 512 in the last layer": ("teacher.truncate_layers=1", "teacher.truncate_length=512"),
    "stochastic length 1.7": ("teacher.stochastic_length=1.7",),
    "stochastic length 1.7, balanced": ("teacher.stochastic_length=1.7", "teacher.stochastic_balance=true"),
    "softmax": ("teacher.attention=softmax",),
    "no bias": ("teacher.position_bias=false", "teacher.time_bias=false"),
}
#: {pretrained}: the folder that ``teacher pretrain`` made
GPSD: dict[str, tuple[str, ...]] = {
    BASE: (),
    "taken over, frozen": ("pretrained.path={pretrained}",),
    "taken over, trained on": ("pretrained.path={pretrained}", "pretrained.freeze=[]"),
    "3 passes": ("teacher_training.batch_epochs=3",),
    "3 passes, taken over, frozen": ("teacher_training.batch_epochs=3", "pretrained.path={pretrained}"),
    "3 passes, taken over, trained on": (
        "teacher_training.batch_epochs=3",
        "pretrained.path={pretrained}",
        "pretrained.freeze=[]",
    ),
}
STUDIES = {"kuairand": KUAIRAND, "long": LONG, "gpsd": GPSD}
#: smallest first, for the scaling curve
SIZES = ("width 16", "width 32", BASE, "4 layers", "width 128", "width 128, 4 layers")


class TeacherStudy(Study):
    """One teacher per arm and seed."""

    def __init__(self, study: str, run: Path, out: Path, pretrained: Path | None = None) -> None:
        super().__init__(run, "")
        self.out, self.arms, self.pretrained = out, STUDIES[study], pretrained
        out.mkdir(parents=True, exist_ok=True)

    def plan_of(self, arm: str) -> Plan:
        """The run's plan with the arm's teacher; another teacher drops settings that it does not have."""
        changes = [change.format(pretrained=self.pretrained and self.pretrained.resolve()) for change in self.arms[arm]]
        plain = load_yaml(self.run / "config.yaml", changes)
        known = installed().get("teacher", plain["teacher"]["name"]).component.config.__dataclass_fields__
        plain["teacher"] = {key: value for key, value in plain["teacher"].items() if key == "name" or key in known}
        return make_plan(plain, installed())

    def train(self, only: str, seeds: tuple[int, ...]) -> None:
        """Train the teachers that are not there yet, one seed after the other."""
        for seed in seeds:
            for arm in (arm for arm in self.arms if only in arm):
                if not self.path(arm, seed).exists():
                    self.one(arm, seed)

    def one(self, arm: str, seed: int) -> None:
        """Train one teacher and keep its test logits."""
        plan, start = self.plan_of(arm), time.perf_counter()
        config = plan.config
        module = build_teacher(plan, self.source.schema, seed)
        take_over(plan, module, self.source, self.split)
        data = training_data(module, self.source, config.teacher_training, self.split.teacher, self.split.stream, seed)
        trainer = plan.trainer.build(BuildContext(self.source.schema, config.all_tasks()))
        with tempfile.TemporaryDirectory() as scratch:
            trainer.fit(module, data, epochs=data.epochs, callbacks=[], out=Path(scratch), title=f"{arm}, seed {seed}")
        module.eval()
        logit = score_rows(
            self.source,
            self.split.test,
            module.history,
            lambda batch: module(batch)[config.task],
            config.evaluation.batch_size,
        )
        part = self.path(arm, seed).with_suffix(".part")
        with part.open("wb") as file:
            np.save(file, logit[self.seen].astype(np.float32))
        embedding = sum(
            weight.numel() for name, weight in module.named_parameters() if "table" in name or "features" in name
        )
        total = sum(weight.numel() for weight in module.parameters())
        seconds = round(time.perf_counter() - start, 1)
        line = {"arm": arm, "seed": seed, "parameters": total, "dense": total - embedding, "seconds": seconds}
        with (self.out / "teachers.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        part.replace(self.path(arm, seed))  # last: a teacher that is there has its line
        print(json.dumps(line), flush=True)

    def path(self, arm: str, seed: int) -> Path:
        name = arm.replace(", ", "-").replace(" ", "-").replace("(", "").replace(")", "").replace("+", "and")
        return self.out / f"{name}-seed-{seed}.npy"

    def found(self, arm: str) -> dict[int, Floats]:
        """Test logits of the arm by seed, of the seeds that are there."""
        there = self.out.glob(self.path(arm, 0).name.replace("-seed-0.", "-seed-*."))
        return {int(path.stem.rsplit("-", 1)[1]): np.load(path).astype(np.float64) for path in there}

    def results(self) -> list[dict[str, Any]]:
        """One row per arm that has a seed which the base has too: metrics, and the gain over the base, paired."""
        base, rows = self.found(BASE), []
        label, user = self.label[self.seen], self.user[self.seen]
        metrics = {name: entry.build(BuildContext()) for name, entry in self.base.metrics.items()}
        for arm in self.arms:
            found = self.found(arm)
            seeds = sorted(found.keys() & base.keys())
            if not seeds:
                continue
            mine, theirs = [found[seed] for seed in seeds], [base[seed] for seed in seeds]
            facts = [json.loads(line) for line in (self.out / "teachers.jsonl").read_text().splitlines()]
            known = [line for line in facts if line["arm"] == arm]
            row: dict[str, Any] = {"arm": arm, "seeds": len(seeds), "dense": known[-1]["dense"]}
            for name, metric in metrics.items():
                eta = transferability(metric, label, user, theirs, mine, mine, seed=BOOTSTRAP_SEED)
                row[name], row[f"{name} gain"] = eta.teacher, eta.gain
            rows.append(row)
        return rows


def table(rows: list[dict[str, Any]], names: list[str]) -> str:
    """Markdown: each arm's metrics and its gain over the base with a paired interval; a gain in NE is a fall."""
    head = " | ".join(f"{name.upper()} | against {BASE}" for name in names)
    lines = [f"| teacher | seeds | dense parameters | {head} |", "|---" * (3 + 2 * len(names)) + "|"]
    for row in rows:
        cells = []
        for name in names:
            gain = row[f"{name} gain"]
            shown = "" if row["arm"] == BASE else f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
            cells.append(f"{row[name].value:.4f} | {shown}")
        lines.append(f"| {row['arm']} | {row['seeds']} | {row['dense']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def scaling(rows: list[dict[str, Any]], name: str) -> tuple[Floats, Floats, Floats]:
    """``(dense parameters, metric, (slope, intercept) of the metric over their logarithm)`` of the sizes."""
    sized = {row["arm"]: row for row in rows if row["arm"] in SIZES}
    found = [sized[arm] for arm in SIZES if arm in sized]
    dense = np.array([row["dense"] for row in found], float)
    value = np.array([row[name].value for row in found])
    return dense, value, np.polyfit(np.log10(dense), value, 1)


def plot(rows: list[dict[str, Any]], names: list[str], out: Path) -> None:
    """Each metric against the number of dense parameters, with the interval over users and seeds and a fitted line."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    sized = [row for arm in SIZES for row in rows if row["arm"] == arm]
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(3.2 * len(names), 3.0), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
            dense, value, (slope, base) = scaling(rows, name)
            spread = np.abs([[row[name].low, row[name].high] for row in sized] - value[:, None]).T
            axes.errorbar(dense, value, yerr=spread, fmt="o", markersize=4, elinewidth=0.8)
            ends = np.array([dense.min(), dense.max()])
            axes.plot(ends, slope * np.log10(ends) + base, color="0.5", linewidth=0.8)
            axes.set_xscale("log")
            axes.set_title(f"{name.upper()}: {slope:+.4f} per tenfold")
            axes.set_xlabel("dense parameters")
        figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the study, which goes on in it")
    parser.add_argument("--only", default="", help="train only arms with this in their name")
    parser.add_argument("--seed", type=int, help="train only this seed")
    parser.add_argument("--pretrained", type=Path, help="for gpsd: what recdistill teacher pretrain wrote")
    parser.add_argument("--plot", type=Path, help="where to write the scaling curve")
    arguments = parser.parse_args()
    if (arguments.study == "gpsd") != (arguments.pretrained is not None):
        parser.error("--pretrained is needed for gpsd, and for it alone")
    study = TeacherStudy(arguments.study, arguments.run, arguments.out, arguments.pretrained)
    study.train(arguments.only, (arguments.seed,) if arguments.seed else SEEDS)
    rows, names = study.results(), list(study.base.metrics)
    print(table(rows, names))
    if arguments.plot:
        plot(rows, names, arguments.plot)


if __name__ == "__main__":
    main()
