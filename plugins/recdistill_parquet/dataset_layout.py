"""From staged names (``c0``, ``l0``, ...) to the columns of the impressions; and files that number distinct values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recdistill_parquet.dataset_plan import Plan


@dataclass(frozen=True)
class Layout:
    """Columns of the impressions of one dataset.

    Attributes:
        plan: who uses which lookup. gives: optional columns that the log has.
    """

    plan: Plan
    gives: Sequence[str]

    def columns(self) -> dict[str, Any]:
        """Column -> numpy dtype, or ``(dtype, width)`` of a matrix column."""
        schema = self.plan.schema
        kinds: dict[str, Any] = dict.fromkeys(
            ("example_id", "request_id", "user_id", "item_id", "event_time"), np.int64
        )
        if self.plan.events:
            kinds |= {"history_start": np.int64, "history_end": np.int64}
        if schema.categorical:
            kinds["categorical"] = (np.int32, len(schema.categorical))
        if schema.numeric:
            kinds["numeric"] = (np.float32, len(schema.numeric))
        kinds |= {f"label_{task}": np.int8 for task in schema.tasks}
        optional = {"position": np.int64, "propensity": np.float32, "shown": np.int8}
        return kinds | {name: kind for name, kind in optional.items() if name in self.gives}

    def arrange(self, staged: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Staged columns ``[rows]`` as columns of the impressions."""
        raw, schema = self.plan.raw, self.plan.schema
        found = {
            "example_id": staged["example_id"],
            "request_id": staged["request" if raw.request_id else "example_id"],
            "user_id": staged["usr"],
            "item_id": staged["c0"],
            "event_time": staged["time"],
        }
        if schema.categorical:
            found["categorical"] = np.column_stack([staged[f"c{index}"] for index in self.plan.categorical])
        if schema.numeric:
            names = [f"n{i}" for i in range(len(raw.numeric))] + [f"h{i}" for i in range(len(raw.history_rates))]
            found["numeric"] = np.column_stack([staged[name] for name in names])
        found |= {f"label_{task}": staged[f"l{number}"] for number, task in enumerate(schema.tasks)}
        same = ("history_start", "history_end", "position", "propensity", "shown")
        return found | {name: staged[name] for name in same if name in staged}


def number_values(batches: Iterable[pa.RecordBatch], path: Path, *, first: int) -> int:
    """Write ``value, id`` with ids from ``first`` on, in the order given; a null value takes id 0 where ``first`` is 1.

    Returns:
        the number of ids, the null value's included.
    """
    writer = None
    count = first
    for batch in batches:
        value = batch.column("value")
        schema = pa.schema([("value", value.type), ("id", pa.int64())])
        if writer is None:
            writer = pq.ParquetWriter(path, schema)
            if first:
                writer.write_batch(
                    pa.record_batch([pa.nulls(first, value.type), pa.array(range(first))], schema=schema)
                )
        ids = pa.array(np.arange(count, count + batch.num_rows))
        writer.write_batch(pa.record_batch([value, ids], schema=schema))
        count += batch.num_rows
    if writer is None:
        schema = pa.schema([("value", pa.string()), ("id", pa.int64())])
        pq.write_table(
            pa.table([pa.nulls(first, pa.string()), pa.array(range(first), pa.int64())], schema=schema), path
        )
    else:
        writer.close()
    return count
