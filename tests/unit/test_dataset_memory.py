"""An import's memory is bounded by its configuration, not by the size of the log."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, resource, sys
from pathlib import Path
import numpy as np, pyarrow as pa
from recdistill_core.rawlog import HistoryRate, RawCategorical, RawLog, RawNumeric, RawSchema
from recdistill_parquet.dataset_writer import write_dataset

COUNT, OUT = int(sys.argv[1]), Path(sys.argv[2])

def batches():
    random = np.random.default_rng(0)
    for start in range(0, COUNT, 50_000):
        n = min(50_000, COUNT - start)
        columns = {
            "user_id": random.integers(0, COUNT // 50, n),
            "item_id": random.integers(0, 50_000, n),
            "event_time": 1_600_000_000_000 + random.integers(0, 10**9, n),
            "click": random.integers(0, 2, n),
            **{f"c{i}": random.integers(0, 1000, n) for i in range(8)},
            "text": random.integers(0, 1000, n).astype(str),
            **{f"x{i}": random.random(n) for i in range(6)},
        }
        yield pa.RecordBatch.from_pydict({name: pa.array(values) for name, values in columns.items()})

schema = RawSchema(
    tasks={"click": "click"},
    categorical=tuple(RawCategorical(name) for name in ("item_id", "text", *(f"c{i}" for i in range(8)))),
    numeric=tuple(RawNumeric(f"x{i}") for i in range(6)),
    history_rates=(HistoryRate("rate", "click"),),
    actions={"click": "click"},
)
raw = RawLog(schema, batches, "a large log", lambda row: f"row {row}")
manifest = write_dataset(raw, OUT, memory_limit="200MB", part_rows=65_536)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"peak_mb": peak, "data_mb": sum(entry.bytes for entry in manifest.files.values()) / 2**20}))
"""


def measure(count: int, out: Path) -> dict[str, float]:
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(count), str(out)], capture_output=True, text=True, check=True
    )
    numbers: dict[str, float] = json.loads(found.stdout)
    return numbers


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    small, large = measure(200_000, tmp_path / "small"), measure(3_000_000, tmp_path / "large")
    grown = large["peak_mb"] - small["peak_mb"]
    # The small log does not use up the 200 MB that DuckDB may take; the large one is several times that.
    assert large["data_mb"] - small["data_mb"] > 300
    assert grown < 130, f"{small} -> {large}"
