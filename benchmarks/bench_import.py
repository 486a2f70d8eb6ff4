"""Import of a log into a dataset: rows per second and peak memory at two sizes.

python benchmarks/bench_import.py [--json]

The simulated log is first written to Parquet files, so that simulating takes no part in the numbers.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from reporting import arguments, in_fresh_process, peak_megabytes, show

from recdistill_core.rawlog import RawLog
from recdistill_parquet.dataset_writer import write_dataset
from recdistill_simulator import SimulatorConfig
from recdistill_simulator.importer import Simulator

SIZES = (250_000, 1_000_000)
MEMORY_LIMIT = "256MB"
BATCH_ROWS = 16_384


def simulated(impressions: int) -> RawLog:
    """A log with 1 history event for each impression; users in proportion, so that histories keep their length."""
    users = impressions // 100
    return Simulator(SimulatorConfig(users=users, impressions=impressions, history_length=100, seed=1)).open()


def stage(raw: RawLog, folder: Path) -> int:
    """Write impressions and events to ``folder``; returns the number of events."""
    counts = {}
    for name, stream in (("impressions", raw.impressions), ("events", raw.events)):
        writer, counts[name] = None, 0
        for batch in stream() if stream else ():
            writer = writer or pq.ParquetWriter(folder / f"{name}.parquet", batch.schema)
            writer.write_batch(batch)
            counts[name] += batch.num_rows
        if writer is not None:
            writer.close()
    return counts["events"]


def batches(path: Path) -> Iterator[Any]:
    """A fresh pass over a staged file."""
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(BATCH_ROWS)


def measure(impressions: int, folder: Path) -> dict[str, float]:
    """Import what is staged in ``folder``; called in a process of its own."""
    raw = replace(
        simulated(impressions),
        impressions=lambda: batches(folder / "impressions.parquet"),
        events=lambda: batches(folder / "events.parquet"),
    )
    start = time.perf_counter()
    peak = peak_megabytes(lambda: write_dataset(raw, folder / "dataset", memory_limit=MEMORY_LIMIT))
    size = sum(path.stat().st_size for path in (folder / "dataset").rglob("*") if path.is_file())
    return {"seconds": time.perf_counter() - start, "peak": peak, "disk": size / 1e6}


def row(impressions: int) -> dict[str, object]:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as name:
        events = stage(simulated(impressions), Path(name))
        found = in_fresh_process(__file__, impressions, name)
    return {
        "impressions": impressions,
        "history events": events,
        "seconds": found["seconds"],
        "impressions/s": impressions / found["seconds"],
        "peak memory, MB": found["peak"],
        "dataset, MB": found["disk"],
    }


def main() -> None:
    given = arguments(__doc__ or "")
    if given.child:
        print(json.dumps(measure(int(given.child[0]), Path(given.child[1]))))
        return
    show({f"Import with memory_limit {MEMORY_LIMIT}": [row(size) for size in SIZES]}, given.json)


if __name__ == "__main__":
    main()
