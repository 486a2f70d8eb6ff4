"""Tables of a comparison, on the console and as Markdown, from its JSON alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from recdistill_compare.job import NO_ETA
from recdistill_pipeline.report import LOGITS_ALONE, Row, eta_cell, interval_cell, markdown
from recdistill_pipeline.statistics import WITHIN_NOISE
from recdistill_pipeline.statistics_bootstrap import SIDES

VALUES = ("row", "raw", "teacher", "distilled", "eta")
DIFFERENCES = ("row", "distilled", "p (Holm)", "eta", "verdict")
#: What stands in a table for the notes of an eta; the JSON holds them in full.
SHORT = {WITHIN_NOISE: "teacher's gain within noise", NO_ETA: "undefined"}


def value_rows(answer: Mapping[str, Any], name: str) -> list[Row]:
    """Cells of one metric: every row's models, averaged over seeds, and eta."""
    names = _marked(answer)
    return [
        (
            names[row["name"]],
            *(interval_cell({**row[side], "low": None}, ".4f") for side in SIDES),
            eta_cell(_short(row["eta"])),
        )
        for row in answer["metrics"][name]["rows"]
    ]


def _marked(answer: Mapping[str, Any]) -> dict[str, str]:
    """Name of every row -> the name with what must not be overlooked of it."""
    return {row["name"]: row["name"] + _mark(row) for row in answer["rows"]}


def _mark(row: Mapping[str, Any]) -> str:
    found = []
    if row["capture"] == "leaky":
        found.append("LEAKY labels: no result")
    if row["embeddings"] == "end":
        found.append("embeddings of the END of training: no result")
    if row["channel"] != LOGITS_ALONE:
        found.append(row["channel"])
    return "".join(f" ({mark})" for mark in found)


def difference_rows(answer: Mapping[str, Any], name: str) -> list[Row]:
    """Cells of one metric: every row against the reference."""
    rows: list[Row] = []
    names = _marked(answer)
    for row in answer["metrics"][name]["rows"]:
        held, shown_name = row["against"], names[row["name"]]
        if held is None:
            rows.append((shown_name, "", "", "", row["verdict"]))
            continue
        eta = _short(held["eta"])
        shown = str(eta["note"]) if eta["value"] is None else interval_cell(eta, "+.2f")
        rows.append(
            (shown_name, interval_cell(held["distilled"], "+.4f"), f"{held['p_holm']:.3f}", shown, row["verdict"])
        )
    return rows


def _short(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {**entry, "note": SHORT.get(entry["note"], entry["note"])}


def console_tables(answer: Mapping[str, Any]) -> list[Table]:
    """The tables of every metric."""
    made = []
    for name, result in answer["metrics"].items():
        made.append(_table(f"{name.upper()} ({_better(result)} is better)", VALUES, value_rows(answer, name)))
        if len(result["rows"]) > 1:
            title = f"{name.upper()}, against {answer['against']} (above 0 is better)"
            made.append(_table(title, DIFFERENCES, difference_rows(answer, name)))
    return made


def _better(result: Mapping[str, Any]) -> str:
    return "more" if result["higher_is_better"] else "less"


def _table(title: str, header: Row, rows: list[Row]) -> Table:
    table = Table(title=title, box=SIMPLE)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def summary(answer: Mapping[str, Any]) -> str:
    """The comparison as a Markdown page."""
    lines = [
        "# Comparison",
        "",
        f"Task `{answer['task']}`, seeds {', '.join(map(str, answer['seeds']))}, {answer['test_rows']:,} test rows of "
        f"{answer['test_users']:,} users. Intervals: {answer['confidence']:.0%}, paired bootstrap over users and "
        f"seeds, {answer['resamples']:,} resamples.",
        "",
        f"Differences are against **{answer['against']}**, and above 0 where the row is better. p: two-sided, "
        "corrected by Holm for the comparisons with that row; verdicts: corrected for all pairs of rows.",
    ]
    for name, result in answer["metrics"].items():
        lines += [
            "",
            f"## {name.upper()} ({_better(result)} is better)",
            "",
            *markdown(VALUES, value_rows(answer, name)),
        ]
        if len(result["rows"]) > 1:
            lines += ["", *markdown(DIFFERENCES, difference_rows(answer, name))]
        lines += ["", answer["verdicts"][name] + "."]
    return "\n".join([*lines, *_settings(answer), ""])


def _settings(answer: Mapping[str, Any]) -> list[str]:
    """The table of what differs between the rows; nothing where nothing does."""
    keys = list(dict.fromkeys(key for row in answer["rows"] for key in row["differs"]))
    if not keys:
        return []
    rows: list[Row] = [(f"`{key}`", *(str(row["differs"].get(key, "")) for row in answer["rows"])) for key in keys]
    return ["", "## What differs", "", *markdown(("setting", *(row["name"] for row in answer["rows"])), rows)]
