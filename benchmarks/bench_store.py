"""Label store: append, commit and read, against writing the same columns to one plain Parquet file.

python benchmarks/bench_store.py [--json]
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from reporting import arguments, show

from recdistill_core.interfaces import CaptureMode
from recdistill_parquet.labels import ParquetLogitStore

ROWS, BATCH = 2_000_000, 2048


def measure(folder: Path) -> list[dict[str, object]]:
    """Seconds of each part, as rows of the table."""
    rng = np.random.default_rng(0)
    ids = rng.permutation(ROWS)
    logits = rng.normal(size=ROWS).astype(np.float32)
    took = {}
    start = time.perf_counter()
    with pq.ParquetWriter(
        folder / "plain.parquet",
        pa.schema([("example_id", pa.int64()), ("logit_click", pa.float32())]),
        compression="zstd",
    ) as plain:
        plain.write_table(pa.table({"example_id": ids, "logit_click": logits}))
    took["plain Parquet: write"] = time.perf_counter() - start

    store = ParquetLogitStore(folder / "labels")
    writer = store.writer("bench", tasks=["click"], mode=CaptureMode.EXTERNAL, view="none", facts={})
    start = time.perf_counter()
    for step, first in enumerate(range(0, ROWS, BATCH)):
        part = slice(first, first + BATCH)
        writer.append(
            torch.from_numpy(ids[part]),
            {"click": torch.from_numpy(logits[part])},
            step=step,
            scored_at=1_700_000_000_000,
        )
    writer.commit()
    took[f"store: append in batches of {BATCH:,}, commit"] = time.perf_counter() - start

    fresh = ParquetLogitStore(folder / "labels")
    wanted = np.arange(ROWS)
    start = time.perf_counter()
    found = fresh.read("bench", wanted)
    took["store: first read, all ids in order"] = time.perf_counter() - start
    expected = np.empty_like(logits)
    expected[ids] = logits
    assert found.valid["click"].all()
    assert np.array_equal(found.logits["click"].numpy(), expected)
    shuffled = rng.permutation(ROWS)
    start = time.perf_counter()
    fresh.read("bench", shuffled)
    took["store: second read, all ids shuffled"] = time.perf_counter() - start
    base = took["plain Parquet: write"]
    return [
        {"what": what, "seconds": spent, "rows/s": ROWS / spent, "times plain write": spent / base}
        for what, spent in took.items()
    ]


def main() -> None:
    given = arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as name:
        show({f"{ROWS:,} labels of one task": measure(Path(name))}, given.json)


if __name__ == "__main__":
    main()
