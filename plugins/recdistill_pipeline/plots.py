"""Plots of a run, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from recdistill_pipeline.evaluate import Predictions

CALIBRATION_BINS = 20


def draw_all(results: Mapping[str, Any], found: Predictions, out: Path) -> list[Path]:
    """Write ``eta.png`` and ``calibration.png`` into ``out``; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figures = {"eta.png": eta_figure(results), "calibration.png": calibration_figure(found)}
        for name, figure in figures.items():
            figure.savefig(out / name, dpi=130)
    return [out / name for name in figures]


def eta_figure(results: Mapping[str, Any]) -> Figure:
    """A forest plot: one row per student and metric, eta with its interval, 0 = nothing and 1 = all transferred."""
    rows = [
        (f"{label}  {name.upper()}", student["eta"][name])
        for label, student in results["students"].items()
        for name in student["eta"]
    ]
    return forest(rows, "transferability eta = (distilled - raw) / (teacher - raw)")


def forest(rows: Sequence[tuple[str, Mapping[str, Any]]], what: str) -> Figure:
    """A line per ``(name, eta)``: the value with its interval, hollow where it has none; ``what`` names the axis."""
    figure = Figure(figsize=(7.5, 1.2 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, (_, eta) in enumerate(rows):
        if eta["value"] is None:
            axes.text(0.02, place, eta["note"], va="center", color="0.4")
            continue
        if eta["low"] is not None:
            axes.plot([eta["low"], eta["high"]], [place, place], color="C0")
        axes.plot(eta["value"], place, "o", color="C0", mfc="C0" if eta["low"] is not None else "white")
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.axvline(1, color="0.6", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"{what}; hollow: teacher gain within noise")
    return figure


def calibration_figure(found: Predictions) -> Figure:
    """Observed rate against predicted probability in equal-mass bins, first seed of every model."""
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    axes = figure.subplots()
    top = 0.0
    for name, logits in found.logits.items():
        probability = 1.0 / (1.0 + np.exp(-logits[0]))
        parts = np.array_split(np.argsort(probability), min(CALIBRATION_BINS, len(probability)))
        predicted = [probability[part].mean() for part in parts]
        observed = [found.label[part].mean() for part in parts]
        top = max(top, *predicted, *observed)
        axes.plot(predicted, observed, marker=".", linewidth=1, label=name)
    axes.plot([0, top], [0, top], color="0.6", linewidth=0.8)
    axes.set_xlabel("predicted probability")
    axes.set_ylabel("observed rate")
    axes.legend(frameon=False)
    return figure
