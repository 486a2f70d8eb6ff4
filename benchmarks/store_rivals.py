"""What bench_store.py compares the label store with: the same labels in plain files, in DuckDB and in LMDB."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from store_labels import Labels

#: How segments of a label store are encoded, for a plain file that is.
STORE_ENCODING = {
    "use_dictionary": False,
    "column_encoding": {
        "logit_click": "BYTE_STREAM_SPLIT",
        **dict.fromkeys(("example_id", "step", "scored_at"), "DELTA_BINARY_PACKED"),
    },
}
ASKED = """
SELECT coalesce(logit, 0) AS logit, logit IS NOT NULL AS valid, coalesce(scored, 0) AS scored
FROM wanted LEFT JOIN labels USING (id) ORDER BY n
"""
Found = tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64]]


def sync(path: Path) -> None:
    """Make a file durable."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def write_parquet(path: Path, labels: Labels, **options: Any) -> None:
    """All columns in one call, in groups of 1,000,000 rows, with zstd, and durable as the store's are."""
    pq.write_table(pa.table(dict(labels.columns())), path, compression="zstd", row_group_size=1_000_000, **options)
    sync(path)


def searchsorted(labels: Labels) -> Callable[[NDArray[np.int64]], Found]:
    """Look-ups in sorted arrays."""
    order = np.argsort(labels.example_id)
    ids, logit, at = labels.example_id[order], labels.logit_click[order], labels.scored_at[order]

    def read(wanted: NDArray[np.int64]) -> Found:
        place = np.minimum(np.searchsorted(ids, wanted), ids.size - 1)
        return logit[place], ids[place] == wanted, at[place]

    return read


def in_duckdb(folder: Path, labels: Labels) -> Callable[[NDArray[np.int64]], Found]:
    """Look-ups by a join with a table of DuckDB's own, on one thread."""
    base = duckdb.connect(folder / "labels.duckdb", config={"threads": 1})
    base.register("given", pa.table({"id": labels.example_id, "logit": labels.logit_click, "scored": labels.scored_at}))
    base.execute("CREATE TABLE labels AS SELECT * FROM given")
    base.unregister("given")

    def read(wanted: NDArray[np.int64]) -> Found:
        base.register("wanted", pa.table({"n": np.arange(wanted.size), "id": wanted}))
        found = base.execute(ASKED).fetchnumpy()
        return found["logit"], found["valid"], found["scored"]

    return read


def in_lmdb(folder: Path, labels: Labels) -> Callable[[NDArray[np.int64]], Found]:
    """Look-ups one by one in a B+ tree of 8-byte keys and 12-byte values."""
    import lmdb

    size = labels.example_id.size
    base = lmdb.open(str(folder / "lmdb"), map_size=200 * size + 2**24)
    order = np.argsort(labels.example_id.view(np.uint64))
    keys = labels.example_id[order].astype(">u8").tobytes()
    values = np.empty(size, np.dtype([("l", "<f4"), ("at", "<i8")]))
    values["l"], values["at"] = labels.logit_click[order], labels.scored_at[order]
    packed = values.tobytes()
    with base.begin(write=True) as change:
        pairs = ((keys[8 * row : 8 * row + 8], packed[12 * row : 12 * row + 12]) for row in range(size))
        change.cursor().putmulti(pairs, append=True)

    def read(wanted: NDArray[np.int64]) -> Found:
        asked = wanted.astype(">u8").tobytes()
        with base.begin() as look:
            got = [look.get(asked[first : first + 8]) for first in range(0, len(asked), 8)]
        found = np.frombuffer(b"".join(value or bytes(12) for value in got), values.dtype)
        return found["l"], np.array([value is not None for value in got]), found["at"]

    return read
