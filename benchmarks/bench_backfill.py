"""Back-fill: rows a second in this process, and over Ray with one and two workers, on the same rows of the same run.

A teacher is trained on a tenth of a simulated feed and labels the rest: the same blocks for every engine, each into a
store of its own. The labels are compared bit for bit. ``start`` is the time until the first block is done, in which Ray
starts its processes and every worker loads the teacher:

    python benchmarks/bench_backfill.py [--json]
"""

from __future__ import annotations

import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from reporting import arguments, show

from recdistill_core.config import make
from recdistill_core.registry import installed
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_pipeline.backfill import backfill
from recdistill_pipeline.plan import make_plan
from recdistill_pipeline.run import Run
from recdistill_pipeline.teacher_of_run import TeacherOfRun

IMPRESSIONS, BLOCK = 60_000, 2_000
CONFIG = {
    "name": "backfill",
    "dataset": {"importer": {"name": "simulator", "users": 1500, "items": 2000, "impressions": IMPRESSIONS}},
    "task": "click",
    "split": {"test_from": "10%"},
    "seeds": [1],
    "threads": 1,
    "teacher": {"name": "hstu", "width": 64, "layers": 2, "heads": 4, "max_length": 128},
    "evaluation": {"batch_size": 1024},
}
ENGINES: dict[str, dict[str, Any]] = {
    "local": {"name": "local"},
    "ray, 1 worker": {"name": "ray", "workers": 1},
    "ray, 2 workers": {"name": "ray", "workers": 2},
}


def note(times: list[float], done: int, total: int) -> None:
    """When a block was done."""
    times.append(time.perf_counter())


def measure(folder: Path) -> list[dict[str, Any]]:
    run = folder / "run"
    Run(make_plan(CONFIG, installed()), run, installed()).teachers()
    shutil.copytree(run / "labels", folder / "labels")
    rows, first = [], None
    for name, spec in ENGINES.items():
        labels = run / "labels"
        shutil.rmtree(labels)
        shutil.copytree(folder / "labels", labels)
        times = [time.perf_counter()]
        found = backfill(
            TeacherOfRun.of(run),
            make(installed(), "engine", spec),
            rows=np.arange(IMPRESSIONS // 10, IMPRESSIONS),
            block_rows=BLOCK,
            progress=partial(note, times),
        )
        end = time.perf_counter()
        logits = ParquetLogitStore(labels).read(found.version, np.arange(IMPRESSIONS)).logits["click"].numpy()
        first = logits if first is None else first
        assert np.array_equal(first.view(np.int32), logits.view(np.int32)), f"{name} gave other labels"
        after = (found.blocks - 1) * BLOCK / (times[-1] - times[1])
        rows.append(
            {
                "engine": name,
                "rows": found.added,
                "seconds": end - times[0],
                "start, s": times[1] - times[0],
                "rows/s": found.added / (end - times[0]),
                "rows/s after the start": after,
            }
        )
    return [
        {**row, "times local, after the start": row["rows/s after the start"] / rows[0]["rows/s after the start"]}
        for row in rows
    ]


def main() -> None:
    given = arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as name:
        show({f"back-fill in blocks of {BLOCK:,} rows": measure(Path(name))}, given.json)


if __name__ == "__main__":
    main()
