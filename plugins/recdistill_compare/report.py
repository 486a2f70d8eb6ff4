"""Tables of a comparison, on the console and as Markdown, from its JSON alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from recdistill_pipeline.report import Row, eta_cell, interval_cell, markdown

HEADER = ("row", "raw", "teacher", "distilled", "eta", "distilled, against", "p (Holm)", "eta, against", "verdict")


def metric_rows(answer: Mapping[str, Any], name: str) -> list[Row]:
    """The cells of one metric's table."""
    captures = {row["name"]: row["capture"] for row in answer["rows"]}
    return [_row(row, captures[row["name"]]) for row in answer["metrics"][name]["rows"]]


def _row(row: Mapping[str, Any], capture: str) -> Row:
    held = row["against"]
    name = row["name"] + (" (LEAKY labels: no result)" if capture == "leaky" else "")
    return (
        name,
        *(interval_cell({**row[side], "low": None}, ".4f") for side in ("raw", "teacher", "distilled")),
        eta_cell(row["eta"]),
        "" if held is None else interval_cell(held["distilled"], "+.4f"),
        "" if held is None else f"{held['p_holm']:.3f}",
        "" if held is None else _eta_difference(held["eta"]),
        row["verdict"],
    )


def _eta_difference(entry: Mapping[str, Any]) -> str:
    return str(entry["note"]) if entry["value"] is None else interval_cell(entry, "+.2f")


def console_tables(answer: Mapping[str, Any]) -> list[Table]:
    """A table for every metric."""
    made = []
    for name, result in answer["metrics"].items():
        better = "more" if result["higher_is_better"] else "less"
        table = Table(*HEADER, title=f"{name.upper()} ({better} is better), against {answer['against']}", box=SIMPLE)
        for row in metric_rows(answer, name):
            table.add_row(*row)
        made.append(table)
    return made


def summary(answer: Mapping[str, Any]) -> str:
    """The comparison as a Markdown page."""
    lines = [
        "# Comparison",
        "",
        f"Task `{answer['task']}`, {len(answer['seeds'])} seeds, {answer['test_rows']:,} test rows of "
        f"{answer['test_users']:,} users. Intervals: {answer['confidence']:.0%}, paired bootstrap over users and "
        f"seeds, {answer['resamples']:,} resamples.",
        "",
        f"Differences are against **{answer['against']}**, and above 0 where the row is better. p: two-sided, "
        "corrected by Holm for the comparisons with that row; verdicts: corrected for all pairs of rows.",
    ]
    for name, result in answer["metrics"].items():
        better = "more" if result["higher_is_better"] else "less"
        lines += ["", f"## {name.upper()} ({better} is better)", "", *markdown(HEADER, metric_rows(answer, name))]
        lines += ["", answer["verdicts"][name] + "."]
    return "\n".join([*lines, *_settings(answer), ""])


def _settings(answer: Mapping[str, Any]) -> list[str]:
    """The table of what differs between the rows; nothing where nothing does."""
    keys = list(dict.fromkeys(key for row in answer["rows"] for key in row["differs"]))
    if not keys:
        return []
    rows: list[Row] = [(f"`{key}`", *(str(row["differs"].get(key, "")) for row in answer["rows"])) for key in keys]
    return ["", "## What differs", "", *markdown(("setting", *(row["name"] for row in answer["rows"])), rows)]
