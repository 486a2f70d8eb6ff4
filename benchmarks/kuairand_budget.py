"""What a budget for teacher labels costs: students of a finished run trained again with some of the labels left out.

Reads a run directory made by ``recdistill run examples/kuairand.yaml --out RUN``. Every student is trained on all rows;
labels that are not chosen, or that the discriminator rejects, are hidden, so that such a row has its hard loss only.
Each student's test logits are kept in OUT with a line in ``OUT/students.jsonl``, so a study that was stopped goes on:

    python benchmarks/kuairand_budget.py RUN --out OUT [--student dcn] [--only k_center] [--plot docs/label-budget.png]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kuairand_choices import Study
from numpy.typing import NDArray

from recdistill_core.component import BuildContext
from recdistill_core.labels import AlignedLabels
from recdistill_core.registry import installed
from recdistill_core.sampler import Candidates
from recdistill_lightning.data import align_labels
from recdistill_pipeline.evaluate import BOOTSTRAP_SEED
from recdistill_pipeline.run import Run
from recdistill_pipeline.statistics import Eta, Interval, transferability
from recdistill_select import KCenterConfig, UncertaintyConfig
from recdistill_select.candidates import raw_student, see
from recdistill_select.discriminator import DiscriminatorConfig, unreliable
from recdistill_select.k_center import KCenterSampler
from recdistill_select.samplers import RandomSampler, UncertaintySampler

Floats = NDArray[np.float64]
SHARES = (5, 10, 25, 50)
REJECTED = (2, 5, 10)
SAMPLERS: dict[str, Any] = {
    "random": RandomSampler(),
    "uncertainty": UncertaintySampler(UncertaintyConfig()),
    "k_center": KCenterSampler(KCenterConfig()),
}
VARIANTS: dict[str, Any] = {
    "uncertainty, half at random": UncertaintySampler(UncertaintyConfig(random_share=0.5)),
    "k_center, not standardised": KCenterSampler(KCenterConfig(standardise=False)),
}
ALL = "all"


@dataclass(frozen=True)
class Arm:
    """One way to have fewer labels: ``labelled`` percent chosen by ``how``, or ``100 - labelled`` rejected by it.

    ``sampler`` says whose choice it is where ``how`` names a change of the training, which ``overrides`` makes.
    """

    how: str
    labelled: int
    sampler: str = ""
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.how}-{self.labelled}"


ARMS = (
    *(Arm(how, share) for share in SHARES for how in SAMPLERS),
    *(Arm(how, 100 - share) for share in REJECTED for how in ("discriminator", "reject at random")),
    # the soft loss is a mean over all rows, so with a tenth of the labels it weighs a tenth
    *(Arm(f"random, alpha {a}", share, "random", (f"strategy.alpha={a}",)) for share, a in ((10, 300), (25, 120))),
    *(Arm(how, share) for share in (10, 25) for how in VARIANTS),
)


def rival(arm: Arm) -> Arm:
    """What the arm's students are compared with: a choice at random of the same size, and all labels for those."""
    if arm.how in ("random", "reject at random"):
        return Arm(ALL, 100)
    return Arm("reject at random" if arm.how == "discriminator" else "random", arm.labelled)


class SomeLabels:
    """A logit store with the labels of all rows hidden but for ``kept [N]``."""

    def __init__(self, store: Any, kept: NDArray[np.bool_]) -> None:
        self.store, self.kept = store, torch.from_numpy(kept)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def aligned(self, choice: Any, **columns: Any) -> AlignedLabels:
        found = self.store.aligned(choice, **columns)
        signal = replace(
            found.signal,
            logits={task: torch.where(self.kept, logit, 0.0) for task, logit in found.signal.logits.items()},
            valid={task: valid & self.kept for task, valid in found.signal.valid.items()},
        )
        return replace(found, signal=signal, origin=torch.where(self.kept, found.origin, -1).to(torch.int16))


class Budget:
    """The study: one student per arm and seed."""

    def __init__(self, run: Path, student: str, out: Path) -> None:
        self.study, self.out = Study(run, student), out
        self.run = Run(self.study.base, run, installed())
        self.rows = self.study.split.student
        self.seeds = self.study.base.config.seeds
        out.mkdir(parents=True, exist_ok=True)
        self.seen: dict[int, Candidates] = {}
        self.orders: dict[tuple[str, int], NDArray[np.int64]] = {}

    def train(self, only: str) -> None:
        """Train the students that are not there yet."""
        todo = [(arm, seed) for arm in ARMS for seed in self.seeds if only in arm.name]
        for arm, seed in todo:
            home = self.path(arm.name, seed)
            if home.exists():
                continue
            kept, facts = self.kept(arm, seed)
            labels, start = self.study.labels(seed, None), time.perf_counter()
            labels["store"] = SomeLabels(labels["store"], kept)
            with tempfile.TemporaryDirectory() as scratch:
                logit = self.study.logits(arm.name, seed, Path(scratch), labels, self.study.plan(arm.overrides))
            part = home.with_suffix(".part")
            with part.open("wb") as file:
                np.save(file, logit[self.study.seen].astype(np.float32))
            part.replace(home)
            line = {"arm": arm.name, "seed": seed, "labels": int(kept.sum()), **facts}
            line["seconds"] = round(time.perf_counter() - start, 1)
            with (self.out / "students.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)

    def path(self, name: str, seed: int) -> Path:
        return self.out / f"{name.replace(', ', '-').replace(' ', '-')}-seed-{seed}.npy"

    def kept(self, arm: Arm, seed: int) -> tuple[NDArray[np.bool_], dict[str, Any]]:
        """``[rows of the dataset]``: whose label stays, and facts about the choice."""
        first, last = self.rows
        count = last - first
        facts: dict[str, Any] = {}
        kept = np.zeros(self.study.source.num_rows, np.bool_)
        if arm.how == "discriminator":
            verdict = self.verdict(seed, 1 - arm.labelled / 100)
            stays = ~verdict.rejected
        elif arm.how == "reject at random":
            stays = np.ones(count, np.bool_)
            # as many as the discriminator rejects, which its running threshold decides
            rejected = int(self.verdict(seed, 1 - arm.labelled / 100).rejected.sum())
            stays[np.random.default_rng(seed).permutation(count)[:rejected]] = False
        else:
            order, facts = self.order(arm.sampler or arm.how, seed)
            stays = np.zeros(count, np.bool_)
            stays[order[: round(count * arm.labelled / 100)]] = True
        kept[first:last] = stays
        label = self.study.source.column(f"label_{self.study.base.config.task}")[first:last]
        return kept, {**facts, "positives": round(float(np.nanmean(label[stays])), 4)}

    def order(self, how: str, seed: int) -> tuple[NDArray[np.int64], dict[str, Any]]:
        """The choice under the largest budget, made once a seed: a smaller budget takes its beginning."""
        start = time.perf_counter()
        if (how, seed) not in self.orders:
            candidates = self.candidates(seed)
            budget = round(len(candidates) * max(SHARES) / 100)
            self.orders[how, seed] = {**SAMPLERS, **VARIANTS}[how].select(candidates, budget, seed)
        return self.orders[how, seed], {"choosing_seconds": round(time.perf_counter() - start, 1)}

    def candidates(self, seed: int) -> Candidates:
        if seed not in self.seen:
            self.seen.clear()  # an embedding is some hundred megabytes
            module = raw_student(self.run, self.study.source, self.study.student, seed)
            self.seen[seed] = see(module, self.study.source, self.rows, 4096)
        return self.seen[seed]

    def verdict(self, seed: int, share: float) -> Any:
        """What the discriminator says of the labels of one seed."""
        first, last = self.rows
        task, candidates = self.study.base.config.task, self.candidates(seed)
        facts = self.study.labels(seed, None)
        version = facts["labels"]["version"]
        logit = align_labels(self.study.source, facts["store"], version, self.rows).signal.logits[task]
        outcome = self.study.source.column(f"label_{task}")[first:last]
        config = DiscriminatorConfig(share=round(share, 4))
        return unreliable(
            logit.numpy()[first:last], outcome, candidates.event_time, candidates.embedding, config, seed=seed
        )

    def results(self) -> list[Result]:
        """Every arm whose students are all there, fewest labels first."""
        arms = sorted((*ARMS, Arm(ALL, 100)), key=lambda arm: arm.labelled)
        students = {arm: self.distilled(arm) for arm in arms}
        metrics = {name: entry.build(BuildContext()) for name, entry in self.study.base.metrics.items()}
        raw = [self.study.stored(f"{self.study.student}-raw", seed) for seed in self.seeds]
        teacher = [self.study.stored("teacher", seed) for seed in self.seeds]

        def compare(before: list[Floats], after: list[Floats]) -> dict[str, Eta]:
            label, user = self.study.label[self.study.seen], self.study.user[self.study.seen]
            return {
                name: transferability(metric, label, user, before, teacher, after, seed=BOOTSTRAP_SEED)
                for name, metric in metrics.items()
            }

        results = []
        for arm in (arm for arm in arms if students[arm]):
            other = students.get(rival(arm), [])
            against = {name: eta.gain_distill for name, eta in compare(other, students[arm]).items()} if other else {}
            results.append(Result(arm, self.labelled(arm), compare(raw, students[arm]), against))
        return results

    def distilled(self, arm: Arm) -> list[Floats]:
        """Test logits of the arm's student of every seed, or an empty list while one is not there."""
        if arm.how == ALL:
            return [self.study.stored(f"{self.study.student}-distilled", seed) for seed in self.seeds]
        paths = [self.path(arm.name, seed) for seed in self.seeds]
        return [np.load(path).astype(np.float64) for path in paths] if all(path.exists() for path in paths) else []

    def labelled(self, arm: Arm) -> float:
        """Percent of the training rows whose label the students saw, the mean over seeds."""
        lines = map(json.loads, (self.out / "students.jsonl").read_text().splitlines())
        counts = [line["labels"] for line in lines if line["arm"] == arm.name]
        return 100 * float(np.mean(counts)) / (self.rows[1] - self.rows[0]) if counts else 100.0


@dataclass(frozen=True)
class Result:
    """One arm: percent of labelled rows, eta by metric, and its gain over :func:`rival`."""

    arm: Arm
    labelled: float
    eta: Mapping[str, Eta]
    against: Mapping[str, Interval]


def tables(results: list[Result]) -> str:
    """Markdown: eta of every arm, and its gain over what it is compared with, seed by seed and user by user."""
    names = list(results[0].eta)
    lines = ["| labels | chosen by | " + " | ".join(f"{name.upper()} | eta {name.upper()}" for name in names) + " |"]
    lines.append("|---" * (2 + 2 * len(names)) + "|")
    for row in results:
        cells = [f"{eta.distilled.value:.4f} | {_shown(eta)}" for eta in row.eta.values()]
        lines.append(f"| {row.labelled:.1f}% | {row.arm.how} | " + " | ".join(cells) + " |")
    lines += ["", "| labels | chosen by | compared with | " + " | ".join(name.upper() for name in names) + " |"]
    lines.append("|---" * (3 + len(names)) + "|")
    for row in (row for row in results if row.against):
        cells = [f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]" for gain in row.against.values()]
        lines.append(f"| {row.labelled:.1f}% | {row.arm.how} | {rival(row.arm).how} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _shown(eta: Eta) -> str:
    if eta.value is None:
        return eta.note
    return f"{eta.value:.2f}" + (f" [{eta.low:.2f}, {eta.high:.2f}]" if eta.low is not None else "")


def plot(results: list[Result], out: Path) -> None:
    """Eta of AUC and NE against the share of labels, a line per sampler with its interval as a band."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        names = list(results[0].eta)
        figure = Figure(figsize=(3.2 * len(names), 3.2), layout="constrained")
        for axes, metric in zip(figure.subplots(1, len(names), sharey=True), names, strict=True):
            for colour, how in enumerate(SAMPLERS):
                points = [(row.labelled, row.eta[metric]) for row in results if row.arm.how in (how, ALL)]
                shares = [share for share, _ in points]
                low, high = ([getattr(eta, side) for _, eta in points] for side in ("low", "high"))
                axes.plot(shares, [eta.value for _, eta in points], marker=".", color=f"C{colour}", label=how)
                axes.fill_between(shares, low, high, color=f"C{colour}", alpha=0.12, linewidth=0)
            axes.axhline(0, color="0.6", linewidth=0.8)
            axes.set_title(metric.upper())
            axes.set_xlabel("labelled examples, %")
        figure.axes[0].set_ylabel("eta, 95% interval")
        figure.axes[0].legend(frameon=False, loc="upper left")
        figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the study, which goes on in it")
    parser.add_argument("--student", default="dcn")
    parser.add_argument("--only", default="", help="train only arms with this in their name, such as k_center-5")
    parser.add_argument("--plot", type=Path, help="where to write the plot")
    arguments = parser.parse_args()
    study = Budget(arguments.run, arguments.student, arguments.out)
    study.train(arguments.only)
    results = study.results()
    print(tables(results))
    if arguments.plot:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()
