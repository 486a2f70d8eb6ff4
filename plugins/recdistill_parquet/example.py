"""A tiny dataset, the example of the source ``parquet``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recdistill_core.rawlog import RawCategorical, RawLog, RawNumeric, RawSchema
from recdistill_parquet.dataset_writer import write_dataset

ROWS, USERS, ITEMS = 120, 9, 14
START, MINUTE = 1_650_000_000_000, 60_000
SCHEMA = RawSchema(
    tasks={"click": "click", "like": "like"},
    request_id="request",
    categorical=(RawCategorical("item_id", side="item"), RawCategorical("genre", side="item"), RawCategorical("tab")),
    numeric=(RawNumeric("age"),),
    position="position",
    propensity="propensity",
    event_fields={"genre": "genre"},
    actions={"click": "click", "like": "clicked_and_liked"},
    truth={"click": "chance"},
)


def write_example(path: Path) -> None:
    """Write a dataset of 120 impressions of 9 users, two at a time, with histories, labels not all observed."""
    write_dataset(RawLog(SCHEMA, _impressions, "example", lambda row: f"example, row {row}"), path)


def _impressions() -> Iterator[Any]:
    draw, row = np.random.default_rng(0), np.arange(ROWS)
    item, chance = draw.integers(0, ITEMS, ROWS), draw.uniform(0.05, 0.6, ROWS)
    click, like = draw.random(ROWS) < chance, draw.random(ROWS) < 0.2
    yield pa.record_batch(
        {
            "user_id": draw.integers(0, USERS, ROWS // 2).repeat(2),
            "item_id": item,
            "event_time": START + row // 2 * MINUTE,
            "request": row // 2,
            "position": row % 2,
            "genre": pa.array([None if number == 5 else f"genre-{number % 4}" for number in item]),
            "tab": draw.integers(0, 3, ROWS),
            "age": draw.normal(size=ROWS),
            "propensity": draw.uniform(0.2, 1.0, ROWS),
            "chance": chance,
            "click": click.astype(np.int8),
            "like": pa.array(like.astype(np.int8), mask=draw.random(ROWS) < 0.1),
            "clicked_and_liked": (click & like).astype(np.int8),
        }
    )
