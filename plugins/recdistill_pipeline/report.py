"""``summary.md`` and the tables on the console, from ``metrics.json`` alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

Row = tuple[str, ...]
#: ``channel`` in metrics.json: what passes from the teacher to the students.
LOGITS_ALONE, WITH_STATES = "logits", "logits and hidden states"


def metric_names(results: Mapping[str, Any]) -> list[str]:
    """Metrics that have an eta, in order."""
    return list(results["eta"])


def model_rows(results: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """Header and rows: every model's metrics, averaged over seeds."""
    names = metric_names(results)
    models: list[tuple[str, Mapping[str, Any]]] = []
    if "oracle" in results:
        models.append(("true probabilities", results["oracle"]))
    models.append(("teacher", results["teacher"]))
    for label, student in results["students"].items():
        models += [(f"{label}, raw", student["raw"]), (f"{label}, distilled", student["distilled"])]
    rows = [(model, *(_plain(values[name]) for name in names)) for model, values in models]
    return ("model", *(name.upper() for name in names)), rows


def eta_rows(results: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """Header and rows: gains over the raw student and eta, with intervals, per student and metric."""
    rows: list[Row] = [
        (
            f"{label}, {name.upper()}",
            interval_cell(student["gain"][name]["teacher"], "+.4f"),
            interval_cell(student["gain"][name]["distilled"], "+.4f"),
            eta_cell(student["eta"][name]),
        )
        for label, student in results["students"].items()
        for name in metric_names(results)
    ]
    return ("student", "teacher's gain", "distilled gain", "eta"), rows


def console_tables(results: Mapping[str, Any]) -> list[Table]:
    """The result tables for a terminal."""
    header, rows = model_rows(results)
    models = Table(*header, title=f"{results['name']}: task {results['task']}, {results['seeds']} seeds", box=SIMPLE)
    for row in rows:
        models.add_row(*row)
    header, rows = eta_rows(results)
    etas = Table(*header, title=f"gains over the raw student, {results['confidence']:.0%} intervals", box=SIMPLE)
    for row in rows:
        etas.add_row(*row)
    return [models, etas]


def markdown(header: Row, rows: list[Row]) -> list[str]:
    """The lines of a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (header, *rows)]
    return [lines[0], "|---" * len(header) + "|", *lines[1:]]


def summary(results: Mapping[str, Any]) -> str:
    """The run as a Markdown page."""
    lines = [f"# {results['name']}", ""]
    if results["capture"] == "leaky":
        lines += [
            "> **Leaky labels.** The teacher was trained on the examples before it scored them, so labels reached what",
            "> was distilled. These numbers show the damage; they are no result.",
            "",
        ]
    if results.get("embeddings") == "end":
        lines += [
            "> **Embeddings of the end of training.** The students learnt from embeddings of a teacher that had been",
            "> trained on their rows, so labels reached what was distilled. These numbers are no result.",
            "",
        ]
    if results["capture"] == "external":
        lines += [
            "> **External labels.** The teacher was not trained here. Whether it had seen the labels of these rows, or",
            "> those of the test rows, is for those who made its scores to say.",
            "",
        ]
    if results["capture"] == "mixed":
        modes = results.get("capture_modes", [])
        lines += [f"> **Mixed labels.** The students learnt from labels of several kinds: {', '.join(modes)}."]
        if "external" in modes:
            lines += [
                "> The teacher of the external ones was not trained here. Whether it had seen the labels of these rows",
                "> is for those who made its scores to say.",
            ]
        lines += [""]
    if results.get("channel", LOGITS_ALONE) != LOGITS_ALONE:
        lines += [
            "> **Hidden states.** Beside the teacher's logits the distilled students read its hidden states of their",
            "> users' past, in training and when they are served. Compare these numbers with those of other runs with",
            "> hidden states; they are not those of a teacher that is a black box.",
            "",
        ]
    if results.get("raw_training"):
        otherwise = ", ".join(f"{key} {value:g}" for key, value in results["raw_training"].items())
        lines += [f"> **Raw students have settings of their own:** {otherwise}.", ""]
    data = results["data"]
    teacher_rows = f"{data['teacher_rows']:,} rows" if data["teacher_rows"] else "rows unknown here"
    lines += [
        f"Task `{results['task']}`, {results['seeds']} seeds. Trained on {teacher_rows} "
        f"(students: {data['student_rows']:,}), tested on {data['test_rows']:,} later rows of {data['test_users']:,} "
        f"users. Intervals: {results['confidence']:.0%}, paired bootstrap over users and seeds.",
        "",
        *markdown(*model_rows(results)),
        "",
        *markdown(*eta_rows(results)),
        "",
        "AUC, GAUC: more is better; NE: less is better; gains are signed so that more is better. "
        "eta = (distilled - raw) / (teacher - raw).",
        "",
        "## Labels and cost",
        "",
        "| student | label coverage | labels' AUC | parameters, teacher : student "
        "| FLOPs per impression, teacher : student |",
        "|---|---|---|---|---|",
    ]
    for label, student in results["students"].items():
        cost = student["cost"]
        lines.append(
            f"| {label} | {data['coverage'].get(label, 0.0):.1%} | {_plain(data.get('label_auc', {}).get(label))} "
            f"| {_ratio(cost, 'parameters')} | {_ratio(cost, 'flops_per_impression')} |"
        )
    lines += [
        "",
        "Labels' AUC: how well the teacher's labels order the outcomes of the very rows that they teach. Where it is "
        "far above the teacher's own AUC on later rows, the labels know these outcomes: look for a leak.",
    ]
    if "further_teachers" in results:
        count = 1 + len(results["further_teachers"])
        lines += [
            "",
            f"The run trained {count} teachers that teach together; teacher and eta above are of the first one.",
        ]
    lines += _privileged(results.get("privileged", {}))
    lines += _exports(results["exports"])
    lines += ["", "![eta](plots/eta.png)", "", "![calibration](plots/calibration.png)", ""]
    lines += [f"Versions: {', '.join(f'{name} {version}' for name, version in results['versions'].items())}.", ""]
    return "\n".join(lines)


def _privileged(told: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """What each feature that only the teacher reads tells of a label by itself; nothing where there is none."""
    rows: list[Row] = [
        (name, task, "unknown" if auc is None else f"{auc:.3f}")
        for name, tasks in told.items()
        for task, auc in tasks.items()
    ]
    if not rows:
        return []
    header = ("read by the teacher alone", "task", "AUC of it alone, training rows")
    return ["", "## Privileged features", "", *markdown(header, rows)]


def _exports(exports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The table of exported students; nothing where none is exported."""
    rows: list[Row] = [
        (label, name, f"{entry['largest_difference']:.1e}", f"{entry['tolerance']:.1e}")
        for label, formats in exports.items()
        for name, entry in formats.items()
    ]
    header = ("distilled student", "exporter", "largest difference of a logit", "promised")
    return ["", "## Exports", "", *markdown(header, rows)] if rows else []


def _ratio(cost: Mapping[str, Any], key: str) -> str:
    ratio = cost["ratio"][key]
    shown = f" = {ratio:,.1f}" if ratio else ""
    teacher = cost["teacher"][key]
    return f"{'unknown' if teacher is None else format(teacher, ',.0f')} : {cost['student'][key]:,.0f}{shown}"


def _plain(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def interval_cell(entry: Mapping[str, Any], form: str) -> str:
    """``value [low, high]`` of an entry, or what of it is known."""
    if entry["value"] is None:
        return "undefined"
    if entry["low"] is None or entry["high"] is None:
        return format(entry["value"], form)
    return f"{entry['value']:{form}} [{entry['low']:{form}}, {entry['high']:{form}}]"


def eta_cell(entry: Mapping[str, Any]) -> str:
    """Eta with its interval, or why there is none."""
    if entry["value"] is None:
        return str(entry["note"])
    if entry["low"] is None:
        return f"{entry['value']:.2f} ({entry['note']})"
    return interval_cell(entry, ".2f")
