"""Plots of a comparison, as PNG: eta of every row, and eta against what differs in size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from recdistill_pipeline.plots import forest

#: ``{file name: (key of a row's sizes, axis, whether it is logarithmic)}``
AGAINST = {
    "student-size": ("student", "parameters of the student", True),
    "teacher-size": ("teacher", "parameters of the teacher", True),
    "label-coverage": ("coverage", "share of the student's rows that have a label", False),
}


def draw_all(answer: Mapping[str, Any], out: Path) -> list[Path]:
    """Write ``eta-METRIC.png`` and, where the rows differ in it, ``eta-METRIC-by-SIZE.png``; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    made = []
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        for name, result in answer["metrics"].items():
            rows = [(row["name"], row["eta"]) for row in result["rows"]]
            figures = {f"eta-{name}.png": forest(rows, f"eta of {name.upper()}")}
            for file, (key, label, logarithmic) in AGAINST.items():
                sizes = [row["sizes"][key] for row in answer["rows"]]
                if len({size for size in sizes if size is not None}) > 1:
                    figures[f"eta-{name}-by-{file}.png"] = by_size(name, result, sizes, label, logarithmic)
            for file, figure in figures.items():
                figure.savefig(out / file, dpi=130)
                made.append(out / file)
    return made


def by_size(name: str, result: Mapping[str, Any], sizes: list[float | None], label: str, logarithmic: bool) -> Figure:
    """Eta with its interval against a size; rows without one, or without eta, are left out."""
    figure = Figure(figsize=(6, 4 + 0.16 * len(sizes)), layout="constrained")
    axes = figure.subplots()
    for at, (row, size) in enumerate(zip(result["rows"], sizes, strict=True)):
        eta, beside = row["eta"], sizes[:at].count(size)
        if size is None or eta["value"] is None:
            continue
        place = size * 1.02**beside if logarithmic else size + 0.005 * beside  # rows of one size beside each other
        color, bounded = f"C{at % 10}", eta["low"] is not None
        if bounded:
            axes.plot([place, place], [eta["low"], eta["high"]], color=color, linewidth=1)
        axes.plot(place, eta["value"], "o", color=color, mfc=color if bounded else "white", label=row["name"])
    if logarithmic:
        axes.set_xscale("log")
    for end, style in ((0, "-"), (1, ":")):
        axes.axhline(end, color="0.6", linewidth=0.8, linestyle=style)
    axes.margins(x=0.15)
    axes.set_xlabel(label)
    axes.set_ylabel(f"eta of {name.upper()}; hollow: teacher gain within noise")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", frameon=False, fontsize=7)
    return figure
