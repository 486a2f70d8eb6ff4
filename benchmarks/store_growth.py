"""How the label store grows: with the number of segments, and with the number of labels."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from reporting import in_fresh_process, peak_megabytes
from store_labels import BATCH, VERSION, Labels, capture, example_ids

from recdistill_parquet.labels import ParquetLogitStore

SEGMENTS = 1000
Row = dict[str, Any]


def segments(script: str, rows: int, place: Path) -> list[Row]:
    """Open a store of many segments, and the same after compaction, in a process of its own each."""
    in_fresh_process(script, "write", rows, place, rows // SEGMENTS)
    found = []
    for what in (f"{SEGMENTS:,} segments", "compacted"):
        if what == "compacted":
            store = ParquetLogitStore(place)
            store.compact(VERSION)
            store.gc(0)
        opened = in_fresh_process(script, "open", rows, place)
        found.append({"labels in": what, **opened, "bytes per label": segment_bytes(place) / rows})
    shutil.rmtree(place)
    return found


def growth(script: str, sizes: list[int], place: Path) -> list[Row]:
    """Write, open and look up ever more labels, in a process of its own each."""
    found = []
    for rows in sizes:
        written = in_fresh_process(script, "write", rows, place, 1_000_000)
        opened = in_fresh_process(script, "open", rows, place)
        found.append({"labels": rows, **written, "bytes per label": segment_bytes(place) / rows, **opened})
        shutil.rmtree(place)
    return found


def child(what: str, rows: str, place: str, *more: str) -> Row:
    """One row's numbers, in a fresh process."""
    return (_write if what == "write" else _open)(int(rows), Path(place), *map(int, more))


def _write(rows: int, place: Path, segment_rows: int) -> Row:
    labels = Labels.of(example_ids("rows", rows))
    capture(place, Labels.of(np.arange(BATCH)))  # libraries are loaded, and what they keep is not counted
    shutil.rmtree(place)
    start = time.perf_counter()
    peak = peak_megabytes(lambda: capture(place, labels, segment_rows))
    spent = time.perf_counter() - start
    return {"written/s": rows / spent, "writer, MB": peak}


def _open(rows: int, place: Path) -> Row:
    capture(place.with_name("small"), Labels.of(np.arange(BATCH))).read(VERSION, np.arange(9))
    shutil.rmtree(place.with_name("small"))
    store = ParquetLogitStore(place)
    keys = np.random.default_rng(3).integers(0, rows, (200, BATCH))
    took: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> None:
        start = time.perf_counter()
        work()
        took[name] = time.perf_counter() - start

    timed("open, s", store.versions)
    peak = peak_megabytes(lambda: timed("first read, s", lambda: store.read(VERSION, keys[0])))
    spent = []
    for part in keys:
        start = time.perf_counter()
        store.read(VERSION, part)
        spent.append(time.perf_counter() - start)
    return {**took, "reader, peak MB": peak, f"{BATCH:,} keys, microseconds": 1e6 * float(np.median(spent))}


def segment_bytes(place: Path) -> int:
    """Bytes of a store's segments."""
    return sum(path.stat().st_size for path in (place / "segments").iterdir())
