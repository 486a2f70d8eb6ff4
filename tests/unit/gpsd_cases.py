"""A source of event sequences that is all in memory, for the tests of pre-training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recdistill_core.schema import Categorical, EventField, Schema
from recdistill_gpsd.config import PretrainConfig
from recdistill_hstu.config import HSTUConfig

START = 1_700_000_000_000
MINUTE = 60_000
ITEMS, GENRES = 12, 4
SCHEMA = Schema(
    tasks=("click",),
    categorical=(
        Categorical("user", "user", "user"),
        Categorical("genre", "genre", "item"),
        Categorical("tab", "tab", "context"),
    ),
    events=(EventField("item", "item_id"), EventField("genre", "genre"), EventField("tab", "tab")),
    actions=("click",),
    vocabularies={"item_id": ITEMS, "genre": GENRES, "tab": 3, "user": 9},
)
TEACHER = HSTUConfig(width=8, layers=2, heads=2, max_length=6, history_stride=2)


def small(**changes: Any) -> PretrainConfig:
    """Settings for a fit of less than a second."""
    plain = {"epochs": 2, "batch_users": 3, "negatives": 5, "device": "cpu"}
    return PretrainConfig(**{**plain, **changes})


class Source:
    """``items``: one list of item ids per user, an event a minute; genre and tab follow from the item."""

    schema = SCHEMA
    snapshot_id = "in-memory"

    def __init__(self, items: Sequence[Sequence[int]], times: Sequence[Sequence[int]] | None = None) -> None:
        self.counts = np.array([len(user) for user in items], np.int64)
        item = np.array([one for user in items for one in user], np.int64)
        minutes = [range(len(user)) for user in items] if times is None else times
        time = np.array([START + MINUTE * one for user in minutes for one in user], np.int64)
        genre = np.where(item > 0, 1 + item % (GENRES - 1), 0)
        self.columns = {"item": item, "genre": genre, "tab": 1 + item % 2, "action": item % 2, "time": time}

    def users(self) -> pa.Table:
        return pa.table({"event_start": np.cumsum(self.counts) - self.counts, "event_count": self.counts})

    def events(self, places: NDArray[np.int64], counts: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        rows = [np.arange(place, place + count) for place, count in zip(places, counts, strict=True)]
        index = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        return {name: column[index] for name, column in self.columns.items()}


def chains(users: int = 12, length: int = 9) -> Source:
    """Every user goes through the items in one order, from a start of their own: an item tells the next."""
    return Source([[1 + (user + step) % (ITEMS - 1) for step in range(length)] for user in range(users)])
