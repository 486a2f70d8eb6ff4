"""The tables and plots of this folder, from the sweeps that ``make bench-eta`` has run.

    python benchmarks/eta/tables.py runs/eta/tables --out benchmarks/eta

A run is named ``DATASET,TABLE-ROW``. Each table is one comparison with its dataset's default recipe
(``DATASET,strategy-rec_distill``): the same test users and seeds in every row, p-values corrected within the table.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from omegaconf import OmegaConf

from recdistill_compare.job import compare_runs
from recdistill_compare.plots import by_size
from recdistill_pipeline.plots import forest
from recdistill_pipeline.report import eta_cell, markdown
from recdistill_pipeline.statistics import WITHIN_NOISE

TABLES = {
    "strategy": "Strategies",
    "loss": "Losses that look at whole requests",
    "size": "Sizes",
    "capture": "Where the labels come from",
    "choice": "One choice changed",
    "debias": "Debiasers",
    "channel": "More than the logits",
}
DEFAULT = "strategy-rec_distill"
ABOUT = (
    "Rows are the arms of [tables-{dataset}.yaml](tables-{dataset}.yaml) over [{base}]({base}), the first one is the "
    "default recipe. Values: raw student → distilled student (teacher), means over seeds."
)
METRICS = ("auc", "gauc", "ne")
_PARTS = re.compile(r"(\d+(?:\.\d+)?)").split
SIZES = {"student": "parameters of the student", "teacher": "parameters of the teacher"}


def row_names(answer: Mapping[str, Any]) -> list[str]:
    """What the rows are called: the run's, and the student's where a run has several."""
    runs = [Path(row["run"]).name.partition(",")[2].partition("-")[2] for row in answer["rows"]]
    students = [f"{run}: {row['student']}" for run, row in zip(runs, answer["rows"], strict=True)]
    return [student if runs.count(run) > 1 else run for run, student in zip(runs, students, strict=True)]


def cells(answer: Mapping[str, Any], at: int) -> list[str]:
    """``raw -> distilled (teacher)`` and eta of each metric, and what the first one says against the default."""
    found = []
    for name in METRICS:
        row = answer["metrics"][name]["rows"][at]
        raw, distilled, teacher = (f"{row[side]['value']:.4f}" for side in ("raw", "distilled", "teacher"))
        eta = row["eta"]
        short = "within noise" if eta["note"] == WITHIN_NOISE else eta["note"]
        found += [f"{raw} → {distilled} ({teacher})", eta_cell({**eta, "note": short})]
    held = answer["metrics"][METRICS[0]]["rows"][at]["against"]
    return [*found, "" if held is None else f"{held['distilled']['value']:+.4f}, p {held['p_holm']:.2g}"]


def table(answer: Mapping[str, Any], *, sizes: bool = False) -> str:
    """One table as Markdown, with the parameters of student and teacher where they differ between rows."""
    head = ["row", *(word for name in METRICS for word in (name.upper(), "eta")), "AUC against the default"]
    names = row_names(answer)
    leaky = [" (leaky: no result)" if row["capture"] == "leaky" else "" for row in answer["rows"]]
    rows = [(name + mark, *cells(answer, at)) for at, (name, mark) in enumerate(zip(names, leaky, strict=True))]
    if sizes:
        head += SIZES.values()
        rows = [
            (*row, *(f"{entry['sizes'][key] / 1e3:,.0f}k" for key in SIZES))
            for row, entry in zip(rows, answer["rows"], strict=True)
        ]
    return "\n".join(markdown(tuple(head), rows))


def draw(answer: Mapping[str, Any], out: Path) -> list[str]:
    """A forest plot per metric, or for sizes eta against them; returns the files' names."""
    made, names = [], row_names(answer)
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        for metric in ("auc", "ne"):
            rows = [{**row, "name": name} for row, name in zip(answer["metrics"][metric]["rows"], names, strict=True)]
            figures = {metric: forest([(row["name"], row["eta"]) for row in rows], f"eta of {metric.upper()}")}
            if out.name.endswith("size"):
                sizes = {key: [row["sizes"][key] for row in answer["rows"]] for key in SIZES}
                figures = {
                    f"{metric}-by-{key}": by_size(metric, {"rows": rows}, sizes[key], label, logarithmic=True)
                    for key, label in SIZES.items()
                }
            for name, figure in figures.items():
                made.append(f"{out.name}-{name}.png")
                figure.savefig(out.with_name(made[-1]), dpi=110)
    return made


def page(dataset: str, runs: Sequence[Path], out: Path) -> str:
    """All tables of one dataset, with their plots."""
    default = next((run for run in runs if run.name == f"{dataset},{DEFAULT}"), None)
    if default is None:
        raise SystemExit(f"error: {dataset},{DEFAULT} is not finished, which every table begins with")
    base = OmegaConf.select(OmegaConf.load(Path(__file__).with_name(f"tables-{dataset}.yaml")), "base")
    lines = [f"# {dataset}", ABOUT.format(dataset=dataset, base=base)]
    for key, title in TABLES.items():
        others = [run for run in runs if run.name.startswith(f"{dataset},{key}-") and run != default]
        if not others:
            continue
        answer = compare_runs([default, *others])
        plots = draw(answer, out / f"{dataset}-{key}")
        about = (
            f"Task `{answer['task']}`, {len(answer['seeds'])} seeds, {answer['test_rows']:,} test rows of "
            f"{answer['test_users']:,} users; {answer['confidence']:.0%} intervals."
        )
        lines += [
            f"## {title}",
            about,
            table(answer, sizes=key == "size"),
            *(f"![{Path(plot).stem}]({plot})" for plot in plots),
        ]
        shown = dict(zip((row["name"] for row in answer["rows"]), row_names(answer), strict=True))
        for told in answer["verdicts"].values():
            name = max((name for name in shown if name in told), key=len, default="")
            lines.append(told.replace(name, f"`{shown[name]}`") if name else told)
        print(f"{dataset}: {title.lower()}, {len(answer['rows'])} rows")
    return "\n\n".join(lines) + "\n"


def main() -> None:
    """See the module's own text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="folder of the sweeps")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pages and plots")
    given = parser.parse_args()
    runs = [path.parent for path in (given.sweep / "runs").glob("*,*/metrics.json")]
    runs.sort(
        key=lambda run: [(0, float(part), "") if part[:1].isdigit() else (1, 0.0, part) for part in _PARTS(run.name)]
    )
    datasets = list(dict.fromkeys(run.name.partition(",")[0] for run in runs))
    if not datasets:
        raise SystemExit(
            f"error: there is no finished run DATASET,ROW in {given.sweep / 'runs'}\n  to do: make bench-eta"
        )
    given.out.mkdir(parents=True, exist_ok=True)
    for dataset in datasets:
        (given.out / f"{dataset}.md").write_text(page(dataset, runs, given.out))


if __name__ == "__main__":
    main()
