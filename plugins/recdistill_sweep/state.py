"""``sweep.json``: which runs there are, what became of them, and their numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recdistill_core.files import write_atomically
from recdistill_pipeline.rundir import read_json
from recdistill_sweep.planned import RUNS, Planned

STATE = "sweep.json"


class SweepState:
    """What is known of every run; each change is on the disk at once.

    Args:
        out: the sweep's folder. planned: its runs.
    """

    def __init__(self, out: Path, planned: Sequence[Planned]) -> None:
        self.out = out
        self.runs: dict[str, dict[str, Any]] = {
            entry.name: {
                "folder": f"{RUNS}/{entry.name}",
                "status": "pending",
                "dataset": entry.arm.dataset,
                "arm": entry.arm.arm,
                "grid": dict(entry.arm.grid),
            }
            for entry in planned
        }
        for entry in planned:
            if entry.finished():
                self.runs[entry.name] |= {"status": "finished", "numbers": headline(entry.folder)}

    def set(self, name: str, status: str, **facts: Any) -> None:
        """Note what became of a run."""
        self.runs[name] |= {"status": status, **facts}
        self.save()

    def finish(self, entry: Planned, seconds: float) -> None:
        """Note that a run has come to its end."""
        self.set(entry.name, "finished", seconds=round(seconds, 1), numbers=headline(entry.folder))

    def save(self) -> None:
        """Write the file."""
        write_atomically(self.out / STATE, json.dumps(self.plain(), indent=2, allow_nan=False, default=str))

    def plain(self) -> dict[str, Any]:
        """The document."""
        return {"format": 1, "runs": self.runs}

    def names(self, *status: str) -> list[str]:
        """Runs of one of these states."""
        return [name for name, facts in self.runs.items() if facts["status"] in status]


def headline(run: Path) -> dict[str, Any]:
    """``{student: {metric: {"raw", "teacher", "distilled", "eta", "low", "high"}}}`` of a finished run."""
    results = read_json(run / "metrics.json")
    return {label: _numbers(student) for label, student in results["students"].items()}


def _numbers(student: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    return {
        metric: {
            **{side: student[side][metric] for side in ("raw", "teacher", "distilled")},
            "eta": eta["value"],
            "low": eta["low"],
            "high": eta["high"],
        }
        for metric, eta in student["eta"].items()
    }
