"""``summary.md`` and the tables on the console, from ``metrics.json`` alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

Row = tuple[str, ...]


def metric_names(results: Mapping[str, Any]) -> list[str]:
    """Metrics that have an eta, in order."""
    return list(results["eta"])


def result_rows(results: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """Header and rows: each model's metrics, each student's eta and gains."""
    names = metric_names(results)
    header = ("model", *(name.upper() for name in names))
    rows: list[Row] = []
    if "oracle" in results:
        rows.append(("true probabilities", *(_plain(results["oracle"][name]) for name in names)))
    rows.append(("teacher", *(_plain(results["teacher"][name]) for name in names)))
    for label, student in results["students"].items():
        rows.append((f"{label} raw", *(_plain(student["raw"][name]) for name in names)))
        rows.append((f"{label} distilled", *(_plain(student["distilled"][name]) for name in names)))
        rows.append((f"{label}: teacher gain", *(_interval(student["gain"][n]["teacher"], "+.4f") for n in names)))
        rows.append((f"{label}: distilled gain", *(_interval(student["gain"][n]["distilled"], "+.4f") for n in names)))
        rows.append((f"{label}: eta", *(_eta(student["eta"][name]) for name in names)))
    return header, rows


def console_table(results: Mapping[str, Any]) -> Table:
    """The result table for a terminal."""
    header, rows = result_rows(results)
    table = Table(*header, title=f"{results['name']}: task {results['task']}, {results['seeds']} seeds")
    for row in rows:
        table.add_row(*row, style="bold" if row[0].endswith(": eta") else None)
    return table


def summary(results: Mapping[str, Any]) -> str:
    """The run as a Markdown page."""
    header, rows = result_rows(results)
    lines = [f"# {results['name']}", ""]
    if results["capture"] == "leaky":
        lines += [
            "> **Leaky labels.** The teacher was trained on the examples before it scored them, so labels reached what",
            "> was distilled. These numbers show the damage; they are no result.",
            "",
        ]
    data = results["data"]
    lines += [
        f"Task `{results['task']}`, {results['seeds']} seeds. Trained on {data['teacher_rows']:,} rows "
        f"(students: {data['student_rows']:,}), tested on {data['test_rows']:,} later rows of {data['test_users']:,} "
        f"users. Intervals: {results['confidence']:.0%}, paired bootstrap over users and seeds.",
        "",
        "| " + " | ".join(header) + " |",
        "|---" * len(header) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        "AUC, GAUC: more is better; NE: less is better; gains are signed so that more is better. "
        "eta = (distilled - raw) / (teacher - raw).",
        "",
        "## Labels and cost",
        "",
        "| student | label coverage | parameters, teacher : student | FLOPs per impression, teacher : student |",
        "|---|---|---|---|",
    ]
    for label, student in results["students"].items():
        cost = student["cost"]
        lines.append(
            f"| {label} | {data['coverage'].get(label, 0.0):.1%} | {_ratio(cost, 'parameters')} "
            f"| {_ratio(cost, 'flops_per_impression')} |"
        )
    lines += ["", "![eta](plots/eta.png)", "", "![calibration](plots/calibration.png)", ""]
    lines += [f"Versions: {', '.join(f'{name} {version}' for name, version in results['versions'].items())}.", ""]
    return "\n".join(lines)


def _ratio(cost: Mapping[str, Any], key: str) -> str:
    ratio = cost["ratio"][key]
    shown = f" = {ratio:,.1f}" if ratio else ""
    return f"{cost['teacher'][key]:,.0f} : {cost['student'][key]:,.0f}{shown}"


def _plain(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _interval(entry: Mapping[str, Any], form: str) -> str:
    if entry["value"] is None:
        return "undefined"
    if entry["low"] is None or entry["high"] is None:
        return format(entry["value"], form)
    return f"{entry['value']:{form}} [{entry['low']:{form}}, {entry['high']:{form}}]"


def _eta(entry: Mapping[str, Any]) -> str:
    if entry["value"] is None:
        return str(entry["note"])
    if entry["low"] is None:
        return f"{entry['value']:.2f} ({entry['note']})"
    return _interval(entry, ".2f")
