"""The label store against plain files, arrays and databases with the same labels.

python benchmarks/bench_store.py [--json] [--rows N] [--large]

Everything is measured in one run on one machine; repeats of what is compared alternate, and the best of each counts.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from reporting import LIBRARIES, parser, show
from store_growth import child, growth, segment_bytes, segments
from store_labels import BATCH, VERSION, Labels, capture, example_ids
from store_rivals import STORE_ENCODING, in_duckdb, in_lmdb, searchsorted, write_parquet

from recdistill_core.labels import LabelChoice
from recdistill_lightning.rows import labels_at
from recdistill_parquet.labels import ParquetLogitStore

Row = dict[str, Any]
LMDB = find_spec("lmdb") is not None  # the extra "bench" brings it
KINDS = {"rows": "ids 0 to N, shuffled", "any": "ids of 64 random bits"}


def alternating(works: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, float]]:
    """``{name: (best seconds, best CPU seconds)}``; each work runs ``repeats`` times, in turn."""
    best = dict.fromkeys(works, (np.inf, np.inf))
    for _ in range(repeats):
        for name, work in works.items():
            gc.collect()
            os.sync()  # what an earlier work has left to write is not charged to this one
            start, busy = time.perf_counter(), time.process_time()
            work()
            spent = time.perf_counter() - start, time.process_time() - busy
            best[name] = min(best[name][0], spent[0]), min(best[name][1], spent[1])
    return best


def writing(folder: Path, labels: Labels) -> list[Row]:
    """Append and commit against one plain file of the same columns, both durable."""
    rows = labels.example_id.size
    plain, packed, store = folder / "plain.parquet", folder / "packed.parquet", folder / "store"

    def append() -> None:
        shutil.rmtree(store, ignore_errors=True)
        capture(store, labels)

    works = {
        "plain Parquet, pyarrow's encodings": lambda: write_parquet(plain, labels),
        f"store: append {BATCH:,} at a time, commit": append,
        "plain Parquet, the store's encodings": lambda: write_parquet(packed, labels, **STORE_ENCODING),
    }
    spent = alternating(works, 5)
    base = spent["plain Parquet, pyarrow's encodings"]
    sizes = plain.stat().st_size, segment_bytes(store), packed.stat().st_size
    return [
        {
            "what": name,
            "seconds": seconds,
            "CPU seconds": busy,
            "labels/s": rows / seconds,
            "speed": base[0] / seconds,
            "speed by CPU": base[1] / busy,
            "bytes per label": size / rows,
        }
        for (name, (seconds, busy)), size in zip(spent.items(), sizes, strict=True)
    ]


def in_training(folder: Path, labels: Labels) -> list[Row]:
    """Labels by position, as the data module takes them, against the same from memory-mapped arrays."""
    store, rows = ParquetLogitStore(folder / "store"), labels.example_id.size
    ids = np.sort(labels.example_id)
    signal = store.aligned(LabelChoice((VERSION,)), dataset="bench", example_id=ids, event_time=ids).signal
    raw = {}
    for name, column in (("logit", signal.logits["click"]), ("valid", signal.valid["click"]), ("at", signal.scored_at)):
        assert column is not None
        np.save(folder / f"{name}.npy", column.numpy())
        raw[name] = np.load(folder / f"{name}.npy", mmap_mode="r")
    batches = [np.arange(first, min(first + BATCH, rows)) for first in range(0, rows, BATCH)]

    def aligned() -> None:
        for batch in batches:
            labels_at(signal, batch)

    def arrays(*names: str) -> Callable[[], None]:
        def read() -> None:
            for batch in batches:
                for name in names:
                    torch.from_numpy(raw[name][batch])

        return read

    works = {"raw arrays": arrays(*raw), "aligned view": aligned, "raw array of logits alone": arrays("logit")}
    spent = alternating(works, 5)
    base = spent["raw arrays"][0]
    return [
        {"what": name, "seconds": seconds, "labels/s": rows / seconds, "speed": base / seconds}
        for name, (seconds, _) in spent.items()
    ]


def at_random(folder: Path, labels: Labels, databases: bool) -> list[Row]:
    """Batches of keys in random order; every way gives the same answers. The best of a way's batches counts."""
    draw = np.random.default_rng(2)
    store = ParquetLogitStore(folder / "store")

    def from_store(wanted: NDArray[np.int64]) -> Any:
        found = store.read(VERSION, wanted)
        return found.logits["click"].numpy(), found.valid["click"].numpy(), found.scored_at

    ways = {"numpy searchsorted": searchsorted(labels), "store": from_store}
    if databases:
        ways["DuckDB join, 1 thread"] = in_duckdb(folder, labels)
    if databases and LMDB:
        ways["LMDB"] = in_lmdb(folder, labels)
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(60):
        keys = draw.choice(labels.example_id, BATCH)
        answers = []
        for name, read in ways.items():
            if number >= 12 and name.startswith(("DuckDB", "LMDB")):
                continue  # they take long
            read(keys[:2])
            start = time.perf_counter()
            answers.append(read(keys))
            spent[name].append(time.perf_counter() - start)
        for answer in answers[1:]:
            assert all(np.array_equal(mine, theirs) for mine, theirs in zip(answers[0], answer, strict=True))
    base = min(spent["numpy searchsorted"])
    return [
        {
            "what": name,
            "microseconds, best": 1e6 * min(took),
            "median": 1e6 * float(np.median(took)),
            "labels/s": BATCH / min(took),
            "speed": base / min(took),
        }
        for name, took in spent.items()
    ]


def measure(rows: int, sizes: list[int], place: Path) -> dict[str, list[Row]]:
    """All tables."""
    tables: dict[str, list[Row]] = {}
    for kind, told in KINDS.items():
        folder = place / kind
        folder.mkdir()
        labels = Labels.of(example_ids(kind, rows))
        tables[f"Write {rows:,} labels of one task, {told}"] = writing(folder, labels)
        if kind == "rows":
            tables[f"Read {rows:,} labels by position, {BATCH:,} at a time"] = in_training(folder, labels)
        tables[f"Look up {BATCH:,} random keys among {rows:,}, {told}"] = at_random(folder, labels, kind == "rows")
        shutil.rmtree(folder)
    tables[f"{rows:,} labels in many segments and in few"] = segments(__file__, rows, place / "segments")
    tables["Growth"] = growth(__file__, sizes, place / "growth")
    return tables


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--rows", type=int, default=10_000_000, help="labels (10,000,000)")
    options.add_argument("--large", action="store_true", help="grow to 100,000,000: 12 GB of memory, minutes")
    given = options.parse_args()
    if given.child:
        print(json.dumps(child(*given.child)))
        return
    sizes = [given.rows // 10, given.rows] + ([10 * given.rows] if given.large else [])
    with tempfile.TemporaryDirectory() as name:
        show(measure(given.rows, sizes, Path(name)), given.json, (*LIBRARIES, *(["lmdb"] if LMDB else [])))


if __name__ == "__main__":
    main()
