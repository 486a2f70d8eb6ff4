"""What a finished run tells of itself: ``metrics.json``, ``manifest.json`` and ``summary.md``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from recdistill_core.files import write_atomically
from recdistill_core.interfaces import SampleSource
from recdistill_pipeline.dataset import Split
from recdistill_pipeline.report import summary
from recdistill_pipeline.rundir import read_json, trained_here, versions
from recdistill_pipeline.states import channel_of

if TYPE_CHECKING:
    from recdistill_pipeline.evaluate import Predictions
    from recdistill_pipeline.run import Run


def write_record(run: Run, source: SampleSource, results: Mapping[str, Any], exports: Mapping[str, Any]) -> None:
    """Write the three files, ``metrics.json`` last: where it is, the run is finished."""
    out = run.directory.path
    write_atomically(out / "summary.md", summary(results))
    write_atomically(out / "manifest.json", json.dumps(_manifest(run, source, exports), indent=2, default=str))
    write_atomically(out / "metrics.json", json.dumps(results, indent=2, allow_nan=False))


def about(run: Run, split: Split, found: Predictions) -> dict[str, Any]:
    """What the results are of: data, labels, and whatever a reader of the numbers must know."""
    plan, config, steps = run.plan, run.plan.config, run.directory.steps()
    teacher = steps[f"seed-{config.seeds[0]}/teacher"]
    labels = {
        label: [steps[f"seed-{seed}/{label}-distilled"]["labels"] for seed in config.seeds] for label in plan.students
    }
    aucs = {label: [entry.get("auc", {}).get(config.task) for entry in entries] for label, entries in labels.items()}
    first = _labels(run)
    return {
        "name": config.name,
        "task": config.task,
        "capture": first["mode"],
        "channel": channel_of(plan),
        "capture_modes": first.get("modes", [first["mode"]]),
        "confidence": config.evaluation.confidence,
        "data": {
            "teacher_rows": split.teacher[1] - split.teacher[0] if trained_here(teacher) else 0,
            "student_rows": split.student[1] - split.student[0],
            "test_rows": len(found.label),
            "test_users": len(set(found.user.tolist())),
            "coverage": {label: entries[0]["coverage"][config.task] for label, entries in labels.items()},
            "label_auc": {label: None if None in of else sum(of) / len(of) for label, of in aucs.items()},
        },
        **({"further_teachers": [entry.name for entry in plan.further_teachers]} if plan.further_teachers else {}),
        **({"privileged": teacher["privileged"]} if "privileged" in teacher else {}),
        **({"embeddings": config.embeddings.at} if config.embeddings.weight else {}),
        **({"raw_training": config.raw_differs()} if config.raw_differs() else {}),
        "versions": versions(),
    }


def _labels(run: Run) -> dict[str, Any]:
    """The labels that the students learnt from; how they came to be is the same for all of them."""
    step = f"seed-{run.plan.config.seeds[0]}/{next(iter(run.plan.students))}-distilled"
    return dict(read_json(run.directory.path / step / "manifest.json")["labels"])


def _manifest(run: Run, source: SampleSource, exports: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": 1,
        "config_digest": run.directory.config_digest,
        "seeds": list(run.plan.config.seeds),
        "dataset": source.snapshot_id,
        "feature_view": source.schema.view_hash(),
        "labels": run.store.snapshot_id(),
        "capture": _labels(run)["mode"],
        "plugins": {
            entry.label: f"{entry.entry.plugin.distribution} {entry.entry.plugin.version}"
            for entry in run.plan.components()
        },
        "versions": versions(),
        "steps": run.directory.steps(),
        "exports": dict(exports),
    }
