"""The export job: every distilled student in every format asked for, compared with the student before it counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from recdistill_core.component import BuildContext
from recdistill_core.config import Resolved
from recdistill_core.errors import IntegrityError, PluginError, RecdistillError
from recdistill_core.interfaces import Exporter, SampleSource, ServingModule
from recdistill_core.serving import largest_difference
from recdistill_pipeline.dataset import Split
from recdistill_pipeline.models import build_student
from recdistill_pipeline.plan import Plan
from recdistill_pipeline.rundir import RunDirectory, read_json
from recdistill_pipeline.student_view import student_view

#: Rows that an exporter is given to trace the module with.
TRACED_ROWS = 16
FIX = "report it to the exporter's author, or leave it out of 'exporters' and run again: nothing is trained twice"


def export_students(
    plan: Plan, run: RunDirectory, source: SampleSource, split: Split, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Export what is not exported yet, each into a step of its own; returns the manifest of each step, by its name.

    Raises:
        PluginError: for an exporter that fails.
        IntegrityError: for logits that differ by more than the exporter's tolerance, or a file changed since.
    """
    found: dict[str, dict[str, Any]] = {}
    if not plan.exporters:
        return found
    for seed in plan.config.seeds:
        for label in plan.students:
            todo = {name: f"seed-{seed}/{label}-distilled/export/{name}" for name in plan.exporters}
            for name, step in todo.items():
                _forget_other_settings(run, step, plan.exporters[name])
            if not all(run.done(step) for step in todo.values()):
                served, inputs = _served(plan, run, source, split, seed, label)
            for name, step in todo.items():
                if not run.done(step):
                    say(f"exporting distilled student {label}, seed {seed}, with {name}")
                    student = {"student": label, "seed": seed}
                    _do(run, step, partial(_export, plan, plan.exporters[name], student, served, inputs))
                found[step] = _unchanged(run, step)
    return found


def by_student(exports: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """``{student: {exporter: {"tolerance", "largest_difference"}}}``, the difference over all seeds."""
    found: dict[str, dict[str, Any]] = {}
    for step, facts in exports.items():
        formats = found.setdefault(facts["student"], {})
        entry = formats.setdefault(step.rpartition("/")[2], {"tolerance": 0.0, "largest_difference": 0.0})
        for key in entry:
            entry[key] = max(entry[key], facts[key])
    return found


def _served(
    plan: Plan, run: RunDirectory, source: SampleSource, split: Split, seed: int, label: str
) -> tuple[ServingModule, dict[str, Tensor]]:
    """The student as it is served, and its inputs for up to one scoring batch of test rows, evenly spaced."""
    weights = run.checked(f"seed-{seed}/{label}-distilled", "model.safetensors")
    source = student_view(plan, source, run.path / f"seed-{seed}/teacher")
    module = build_student(plan, label, source.schema, seed, distilled=True, weights=weights)
    first, last = split.test
    count = min(last - first, plan.config.evaluation.batch_size)
    rows = np.unique(np.linspace(first, last - 1, count).astype(np.int64))
    return module.serving_module(), module.student.inputs(source.batch(rows, module.history))


def _export(
    plan: Plan,
    chosen: Resolved,
    student: Mapping[str, Any],
    served: ServingModule,
    inputs: Mapping[str, Tensor],
    out: Path,
) -> dict[str, Any]:
    """Write one student in one format into ``out`` and compare it, for one row and for all; returns the facts."""
    exporter: Exporter = chosen.build(BuildContext(None, plan.config.all_tasks()))
    path = out / f"model{exporter.suffix}"
    who = f"{chosen.label} and distilled student {student['student']!r}, seed {student['seed']}"
    try:
        exporter.export(served, {name: tensor[:TRACED_ROWS] for name, tensor in inputs.items()}, path)
        loaded = exporter.load(path)
        one = {name: tensor[:1] for name, tensor in inputs.items()}
        difference = max(largest_difference(served, loaded, rows, where=who) for rows in (one, inputs))
    except RecdistillError:
        raise
    except (Exception, SystemExit) as error:
        where = f"plugin {chosen.entry.plugin.label}"
        raise PluginError(f"{who}: the export failed: {type(error).__name__}: {error}", where=where, fix=FIX) from error
    if not difference <= exporter.tolerance:
        raise IntegrityError(
            f"{who}: an exported logit differs from the student's by {difference:.3g}, "
            f"and {exporter.tolerance:.3g} is promised",
            where=f"plugin {chosen.entry.plugin.label}",
            fix=FIX,
        )
    return {
        "kind": "export",
        **student,
        "exporter": chosen.plain(),
        "path": path.name,
        "rows": len(next(iter(inputs.values()))),
        "tolerance": exporter.tolerance,
        "largest_difference": difference,
    }


def _do(run: RunDirectory, step: str, work: Callable[[Path], Mapping[str, Any]]) -> None:
    """A step that leaves nothing of a failed export behind."""
    try:
        run.step(step, work)
    except BaseException:
        scratch = run.scratch(step)
        shutil.rmtree(scratch, ignore_errors=True)
        with suppress(OSError):  # other exports lie beside it
            scratch.parent.rmdir()
        raise


def _forget_other_settings(run: RunDirectory, step: str, chosen: Resolved) -> None:
    """Drop a finished export that was made with other settings of its exporter."""
    settings = json.loads(json.dumps(chosen.plain(), default=str))
    if run.done(step) and read_json(run.path / step / "manifest.json").get("exporter") != settings:
        shutil.rmtree(run.path / step)


def _unchanged(run: RunDirectory, step: str) -> dict[str, Any]:
    facts = read_json(run.path / step / "manifest.json")
    for file in facts["files"]:
        run.checked(step, file)
    return facts
